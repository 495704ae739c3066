// For tests of processors that this machine does not have: members of a team that are slower than others.
#pragma once

#include "engine/team.h"

namespace effv2 {

// Told of all that members of teams do, on their threads, which it may hold up.
class Pace {
 public:
  virtual ~Pace() = default;
  // Before a member takes of a deal of `count` items, whose last it may not have had any part of.
  virtual void begins(const Team& team, int count) = 0;
  // When it has computed a part of it.
  virtual void did(const Team& team, Range part) = 0;
  // Before it waits for the others.
  virtual void meets(const Team& team) = 0;
};

// From now on it is told of the teams of networks; null ends it. It must be told of one team at a time.
void pretend_pace(Pace* pace);
Pace* pretended_pace();

}  // namespace effv2
