#include "reference.h"

#include <algorithm>
#include <cmath>
#include <functional>

namespace effv2::tests {
namespace {

int ceil_div(int n, int by) { return (n + by - 1) / by; }

double gelu(double x) { return 0.5 * x * std::erfc(-x / std::sqrt(2.0)); }

double activated(Activation a, double x) {
  switch (a) {
    case Activation::gelu:
      return gelu(x);
    case Activation::relu:
      return std::max(x, 0.0);
    case Activation::relu6:
      return std::clamp(x, 0.0, 6.0);
    case Activation::silu:
      return x / (1 + std::exp(-x));
    case Activation::hardswish:
      return x * std::clamp(x + 3, 0.0, 6.0) / 6;
    case Activation::none:
      break;
  }
  return x;
}

Exact activated(Activation a, Exact x) {
  for (double& value : x.values) value = activated(a, value);
  return x;
}

Exact add(Exact a, const Exact& b) {
  for (std::size_t i = 0; i < a.values.size(); ++i) a.values[i] += b.values[i];
  return a;
}

// 1x1 convolution; weight: (out, in).
Exact linear(const Exact& x, const float* weight, const float* bias, int out) {
  const int in = x.size.channels;
  Exact y({x.size.height, x.size.width, out});
  for (int row = 0; row < x.size.height; ++row) {
    for (int column = 0; column < x.size.width; ++column) {
      const double* pixel = &x.values[(static_cast<std::size_t>(row) * x.size.width + column) * in];
      for (int n = 0; n < out; ++n) {
        double sum = bias[n];
        for (int k = 0; k < in; ++k) sum += pixel[k] * weight[static_cast<std::size_t>(n) * in + k];
        y.at(row, column, n) = sum;
      }
    }
  }
  return y;
}

// Calls f(tap, row, column) for the taps of a window, centred on the map by its padding, that lie inside of
// it.
template <class Function>
void for_window(Map map, int kernel, int row, int column, int stride, Function f) {
  for (int i = 0; i < kernel; ++i) {
    for (int j = 0; j < kernel; ++j) {
      const int y = row * stride + i - kernel / 2, x = column * stride + j - kernel / 2;
      if (y >= 0 && y < map.height && x >= 0 && x < map.width) f(kernel * i + j, y, x);
    }
  }
}

// Full convolution; weight: (out, in, kernel, kernel).
Exact conv(const Exact& x, const float* weight, const float* bias, int out, int kernel, int stride) {
  const int in = x.size.channels;
  const std::size_t taps = static_cast<std::size_t>(kernel) * kernel;
  Exact y({ceil_div(x.size.height, stride), ceil_div(x.size.width, stride), out});
  for (int row = 0; row < y.size.height; ++row) {
    for (int column = 0; column < y.size.width; ++column) {
      for (int n = 0; n < out; ++n) y.at(row, column, n) = bias[n];
      for_window(x.size, kernel, row, column, stride, [&](int tap, int from_row, int from_column) {
        for (int n = 0; n < out; ++n) {
          double sum = 0;
          for (int k = 0; k < in; ++k) {
            sum +=
                x.at(from_row, from_column, k) * weight[(static_cast<std::size_t>(n) * in + k) * taps + tap];
          }
          y.at(row, column, n) += sum;
        }
      });
    }
  }
  return y;
}

// Depthwise convolution; weight: (channels, kernel, kernel).
Exact depthwise(const Exact& x, const float* weight, const float* bias, int stride, int kernel = 3) {
  Exact y({ceil_div(x.size.height, stride), ceil_div(x.size.width, stride), x.size.channels});
  for (int row = 0; row < y.size.height; ++row) {
    for (int column = 0; column < y.size.width; ++column) {
      for (int c = 0; c < x.size.channels; ++c) y.at(row, column, c) = bias[c];
      for_window(x.size, kernel, row, column, stride, [&](int tap, int from_row, int from_column) {
        for (int c = 0; c < x.size.channels; ++c) {
          y.at(row, column, c) += x.at(from_row, from_column, c) * weight[c * kernel * kernel + tap];
        }
      });
    }
  }
  return y;
}

// Bilinear, align_corners=False, to twice the size; cropped to `size`.
Exact enlarge(const Exact& x, int height, int width) {
  Exact y({height, width, x.size.channels});
  for (int row = 0; row < height; ++row) {
    const double at_row = std::max((row + 0.5) / 2 - 0.5, 0.0);
    const int top = static_cast<int>(at_row), bottom = std::min(top + 1, x.size.height - 1);
    for (int column = 0; column < width; ++column) {
      const double at_column = std::max((column + 0.5) / 2 - 0.5, 0.0);
      const int left = static_cast<int>(at_column), right = std::min(left + 1, x.size.width - 1);
      const double down = at_row - top, across = at_column - left;
      for (int c = 0; c < x.size.channels; ++c) {
        y.at(row, column, c) =
            (1 - down) * ((1 - across) * x.at(top, left, c) + across * x.at(top, right, c)) +
            down * ((1 - across) * x.at(bottom, left, c) + across * x.at(bottom, right, c));
      }
    }
  }
  return y;
}

struct Matrix {
  int rows, columns;
  std::vector<double> values;
  Matrix(int r, int c) : rows(r), columns(c), values(static_cast<std::size_t>(r) * c) {}
  double& at(int r, int c) { return values[static_cast<std::size_t>(r) * columns + c]; }
  double at(int r, int c) const { return const_cast<Matrix*>(this)->at(r, c); }
  double clamped(int r, int c) const { return at(std::clamp(r, 0, rows - 1), std::clamp(c, 0, columns - 1)); }
};

// Keys' cubic kernel with a = -0.75, as PyTorch's bicubic interpolation has it.
double cubic(double distance) {
  const double a = -0.75, d = std::fabs(distance);
  if (d <= 1) return (a + 2) * d * d * d - (a + 3) * d * d + 1;
  return d < 2 ? a * d * d * d - 5 * a * d * d + 8 * a * d - 4 * a : 0;
}

Matrix bicubic(const Matrix& m, int rows, int columns) {
  // One axis after the other: the kernel is a product.
  const auto along = [](int outputs, int inputs, const std::function<void(int, int, double)>& add_tap) {
    for (int i = 0; i < outputs; ++i) {
      const double at = (i + 0.5) * inputs / outputs - 0.5;
      const int first = static_cast<int>(std::floor(at)) - 1;
      for (int tap = first; tap < first + 4; ++tap) add_tap(i, tap, cubic(at - tap));
    }
  };
  Matrix tall(rows, m.columns), resized(rows, columns);
  along(rows, m.rows, [&](int i, int tap, double weight) {
    for (int c = 0; c < m.columns; ++c) tall.at(i, c) += weight * m.clamped(tap, c);
  });
  along(columns, m.columns, [&](int i, int tap, double weight) {
    for (int r = 0; r < rows; ++r) resized.at(r, i) += weight * tall.clamped(r, tap);
  });
  return resized;
}

// The bias of every query and key of a grid of keys, per head.
Matrix bias_of(const AttentionBiasSpec& spec, int head, int key_rows, int key_columns) {
  const int stride = spec.query_stride;
  const auto queries = [&](int rows, int columns) {
    return ceil_div(rows, stride) * ceil_div(columns, stride);
  };
  Matrix gathered(queries(spec.rows, spec.cols), spec.rows * spec.cols);
  for (int q = 0; q < gathered.rows; ++q) {
    const int query_columns = ceil_div(spec.cols, stride);
    const int row = q / query_columns * stride, column = q % query_columns * stride;
    for (int k = 0; k < gathered.columns; ++k) {
      const int rows_apart = std::abs(row - k / spec.cols), columns_apart = std::abs(column - k % spec.cols);
      gathered.at(q, k) =
          spec.table[(static_cast<std::size_t>(head) * spec.rows + rows_apart) * spec.cols + columns_apart];
    }
  }
  if (!spec.resize) return gathered;
  return bicubic(gathered, queries(key_rows, key_columns), key_rows * key_columns);
}

void softmax_rows(Matrix& m) {
  for (int r = 0; r < m.rows; ++r) {
    double highest = m.at(r, 0), sum = 0;
    for (int c = 1; c < m.columns; ++c) highest = std::max(highest, m.at(r, c));
    for (int c = 0; c < m.columns; ++c) sum += m.at(r, c) = std::exp(m.at(r, c) - highest);
    for (int c = 0; c < m.columns; ++c) m.at(r, c) /= sum;
  }
}

// Positions x channels [first, first + count) of a map.
Matrix channels_of(const Exact& x, int first, int count) {
  Matrix m(static_cast<int>(x.size.pixels()), count);
  for (int i = 0; i < m.rows; ++i) {
    for (int c = 0; c < count; ++c)
      m.at(i, c) = x.values[static_cast<std::size_t>(i) * x.size.channels + first + c];
  }
  return m;
}

// out += factor * m, element by element.
void add_scaled(Matrix& out, double factor, const Matrix& m) {
  for (std::size_t i = 0; i < out.values.size(); ++i) out.values[i] += factor * m.values[i];
}

Matrix product_with_transpose(const Matrix& a, const Matrix& b) {
  Matrix c(a.rows, b.rows);
  for (int i = 0; i < a.rows; ++i) {
    for (int j = 0; j < b.rows; ++j) {
      for (int k = 0; k < a.columns; ++k) c.at(i, j) += a.at(i, k) * b.at(j, k);
    }
  }
  return c;
}

// u[:, first ...] += weights . values
void add_weighted_values(const Matrix& weights, const Matrix& values, int first, Exact& u) {
  for (int i = 0; i < weights.rows; ++i) {
    double* out = &u.values[static_cast<std::size_t>(i) * u.size.channels + first];
    for (int j = 0; j < weights.columns; ++j) {
      for (int d = 0; d < values.columns; ++d) out[d] += weights.at(i, j) * values.at(j, d);
    }
  }
}

// The channels [first, end) of a map as a map.
Exact slice(const Exact& x, int first, int count) {
  Exact y({x.size.height, x.size.width, count});
  y.values = channels_of(x, first, count).values;
  return y;
}

}  // namespace

Exact reference(const StemSpec& s, const Exact& x) {
  const Exact mid = activated(s.activation, conv(x, s.conv1.weight, s.conv1.bias, s.mid_channels, 3, 2));
  return activated(s.activation, conv(mid, s.conv2.weight, s.conv2.bias, s.out_channels, 3, 2));
}

Exact reference(const FfnSpec& s, const Exact& x) {
  const Exact hidden = s.expands ? activated(s.activation, linear(x, s.fc1.weight, s.fc1.bias, s.hidden)) : x;
  const Exact behind = activated(s.activation, depthwise(hidden, s.dw.weight, s.dw.bias, s.stride, s.kernel));
  const Exact y = linear(behind, s.fc2.weight, s.fc2.bias, s.out_channels);
  return s.residual ? add(y, x) : y;
}

Exact reference(const AttentionSpec& s, const Exact& x) {
  const Exact z = s.stride == 2 ? depthwise(x, s.dw.weight, s.dw.bias, 2) : x;
  const int keys = s.heads * s.key_dim, values = s.heads * s.value_dim;
  const Exact qkv = linear(z, s.qkv.weight, s.qkv.bias, 2 * keys + values);
  const int n = static_cast<int>(z.size.pixels());

  std::vector<Matrix> logits, probabilities;
  for (int h = 0; h < s.heads; ++h) {
    logits.push_back(product_with_transpose(channels_of(qkv, h * s.key_dim, s.key_dim),
                                            channels_of(qkv, keys + h * s.key_dim, s.key_dim)));
  }
  for (int h = 0; h < s.heads; ++h) {
    probabilities.push_back(s.has_bias ? bias_of(s.bias, h, z.size.height, z.size.width) : Matrix(n, n));
    for (int g = 0; g < s.heads; ++g) {
      const double weight = s.has_mixing ? s.mix1_weight[h * s.heads + g] : g == h;
      add_scaled(probabilities[h], weight, logits[g]);
    }
    softmax_rows(probabilities[h]);
  }

  const Exact v = slice(qkv, 2 * keys, values);
  Exact u = s.has_local ? depthwise(v, s.local.weight, s.local.bias, 1) : Exact(v.size);
  for (int h = 0; h < s.heads; ++h) {
    Matrix mixed(n, n);
    if (s.has_mixing) std::fill(mixed.values.begin(), mixed.values.end(), s.mix2.bias[h]);
    for (int g = 0; g < s.heads; ++g) {
      const double weight = s.has_mixing ? s.mix2.weight[h * s.heads + g] : g == h;
      add_scaled(mixed, weight, probabilities[g]);
    }
    add_weighted_values(mixed, channels_of(qkv, 2 * keys + h * s.value_dim, s.value_dim), h * s.value_dim, u);
  }
  if (s.stride == 2) u = enlarge(u, x.size.height, x.size.width);
  return add(linear(activated(s.activation, u), s.proj.weight, s.proj.bias, s.in_channels), x);
}

Exact reference(const ConvSpec& s, const Exact& x) {
  return activated(s.activation, conv(x, s.conv.weight, s.conv.bias, s.out_channels, s.kernel, s.stride));
}

Exact reference(const AttentionDownsampleSpec& s, const Exact& x) {
  const int keys = s.heads * s.key_dim, values = s.heads * s.value_dim;
  const Exact q = linear(depthwise(x, s.dw.weight, s.dw.bias, 2), s.q.weight, s.q.bias, keys);
  const Exact kv = linear(x, s.kv.weight, s.kv.bias, keys + values);

  Exact u = depthwise(slice(kv, keys, values), s.local.weight, s.local.bias, 2);
  for (int h = 0; h < s.heads; ++h) {
    Matrix p = bias_of(s.bias, h, x.size.height, x.size.width);
    add_scaled(p, 1,
               product_with_transpose(channels_of(q, h * s.key_dim, s.key_dim),
                                      channels_of(kv, h * s.key_dim, s.key_dim)));
    softmax_rows(p);
    add_weighted_values(p, channels_of(kv, keys + h * s.value_dim, s.value_dim), h * s.value_dim, u);
  }
  return add(linear(activated(s.activation, u), s.proj.weight, s.proj.bias, s.out_channels),
             conv(x, s.conv.weight, s.conv.bias, s.out_channels, 3, 2));
}

Exact reference(const HeadSpec& s, const Exact& x) {
  Exact mean({1, 1, s.in_channels});
  for (int row = 0; row < x.size.height; ++row) {
    for (int column = 0; column < x.size.width; ++column) {
      for (int c = 0; c < s.in_channels; ++c) mean.values[c] += x.at(row, column, c);
    }
  }
  for (double& value : mean.values) value /= static_cast<double>(x.size.pixels());
  return linear(mean, s.linear.weight, s.linear.bias, s.classes);
}

}  // namespace effv2::tests
