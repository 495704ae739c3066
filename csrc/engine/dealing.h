// How a batch is divided among threads: as many images as can be dealt out evenly go to single threads, which
// take a few at a time; what is left is shared by teams.
#pragma once

#include <algorithm>

#include "engine/block.h"
#include "engine/team.h"

namespace effv2 {

// How many of these threads help with an image. Large teams have so few rows and panels for each that shares
// come in steps: between them more threads make none of the shares smaller, but the overlaps of shares more.
inline int helpful(int threads) {
  if (threads <= 24) return threads;
  int step = 4;  // 28, 32, 40, 48, 56, 64, 80 ...
  while (8 * step <= threads) step *= 2;
  return threads / step * step;
}

struct Dealing {
  // Images that one thread takes through the late blocks together: few enough that every thread gets several
  // groups.
  static int group(int images, int threads) {
    return std::max(1, std::min(kMostInGroup, images / (2 * threads)));
  }

  Dealing(int images, int threads)
      : threads(threads), alone(threads == 1 ? images : images / threads * threads), left(images - alone) {}

  // Images that a thread takes alone, where all are equally fast.
  int taken_alone(int rank, int group) const {
    int images = 0;
    for (int first = rank * group; first < alone; first += threads * group) {
      images += std::min(group, alone - first);
    }
    return images;
  }

  // A team for each image that is left: the threads that have it, of which the first help.
  Range members(int team) const { return split(threads, team, left); }
  int team_of(int rank) const {
    int team = 0;
    while (rank >= members(team).end) ++team;
    return team;
  }
  int helpers(int team) const {
    const Range all = members(team);
    return helpful(all.end - all.begin);
  }

  int threads, alone, left;
};

}  // namespace effv2
