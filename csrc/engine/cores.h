// How many threads to start by default, where processors are not alike.
#pragma once

#include <string>
#include <vector>

namespace effv2 {

// A thread for each fast or middle core that this process may run on; see fast_cores().
int default_threads();

// How many of these processors are no small ones, by what Linux says of them below `folder`; all of them
// where it tells no difference.
//
// By cpu_capacity a core is small if it has less than a third of the largest one's; a Pixel 6 has 2 of 1024,
// 2 of about 500 and 4 of at most 250, and so 4 threads. By cpuinfo_max_freq, which says less, if it has less
// than four fifths of the highest: there 2.80, 2.25 and 1.80 GHz.
int fast_cores(const std::string& folder, const std::vector<int>& processors);

}  // namespace effv2
