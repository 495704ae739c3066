// What the modules for the GPU and for its emulator share: steps made of names and numbers.
#pragma once

#include <pybind11/pybind11.h>

void bind_steps(pybind11::module_& m);
