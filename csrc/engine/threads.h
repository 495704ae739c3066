// The threads of this process that help to run networks.
//
// They are this library's own, so that no other library's pool is needed or disturbed: they are started
// when first wanted, spin for a moment after their work, then sleep. A call takes only threads that are
// idle, so calls from several Python threads never share a core more than they must. After fork() the
// child starts threads of its own.
#pragma once

#include <mutex>
#include <vector>

namespace effv2 {

// Processors that this process may run on.
int usable_cpus();
// Their numbers; empty where the system does not say.
std::vector<int> usable_processors();
// For tests of large teams on small machines: from now on take usable_cpus() to be `count`; 0 ends it.
void pretend_cpus(int count);

// Calls job(argument, rank, size) for every rank in [0, size), rank 0 on the calling thread, and returns
// when all are done. size is at most `threads` and at least 1: the number of threads that were idle,
// never more than usable_cpus(). Jobs must not throw.
void run_on_threads(int threads, void (*job)(void*, int, int), void* argument);

// Guards short lists that must stay usable in a child after fork(): held across it, never while waiting.
std::mutex& fork_safe_mutex();

}  // namespace effv2
