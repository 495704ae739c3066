#include "runner/classes.h"

#include <algorithm>
#include <cmath>

namespace effv2::runner {

std::vector<std::vector<Class>> top_classes(const Network& network, const Array& logits, int count) {
  const auto classes = static_cast<std::size_t>(logits.shape[1]);
  std::vector<std::vector<Class>> found;
  for (auto row = logits.values.begin(); row != logits.values.end(); row += logits.shape[1]) {
    std::vector<Class> all(classes);
    // What is no number comes last: an order needs all of them to compare.
    const auto rank = [](double logit) { return std::isnan(logit) ? -INFINITY : logit; };
    double largest = -INFINITY, sum = 0;
    for (std::size_t i = 0; i < classes; ++i)
      largest = std::max<double>(largest, rank(row[static_cast<std::ptrdiff_t>(i)]));
    for (std::size_t i = 0; i < classes; ++i) {
      const char* name = network.class_name(static_cast<int>(i));
      const double logit = row[static_cast<std::ptrdiff_t>(i)];
      all[i] = {static_cast<int>(i), name ? name : "", logit, std::exp(logit - largest)};
      sum += all[i].probability;
    }
    for (Class& one : all) one.probability /= sum;
    std::stable_sort(all.begin(), all.end(),
                     [&](const Class& a, const Class& b) { return rank(a.logit) > rank(b.logit); });
    all.resize(std::min(classes, static_cast<std::size_t>(count)));
    found.push_back(std::move(all));
  }
  return found;
}

}  // namespace effv2::runner
