// Pictures of files: JPEG, PNG and PPM.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace effv2::runner {

struct Picture {
  std::size_t rows, columns, channels;
  std::vector<unsigned char> values;  // rows x columns x channels
};

// More are not decoded: half a gigabyte of RGB.
inline constexpr std::size_t kMostPixels = 178956970;

// Upright, as its EXIF data tell, in 8 bits of red, green and blue. Colour profiles are ignored, transparency
// is dropped, and grey or colours of 16 bits are brought to 8 by their upper byte. Throws Failure.
Picture read_picture(const std::string& path);
// Of red, green and blue their luma (ITU-R 601), as Pillow rounds it.
Picture grey(const Picture& coloured);

// Whether every Huffman table of a JPEG, if it is one, has the codes that there can be, and no more.
bool jpeg_tables_have_room(const std::vector<unsigned char>& bytes);

// 1 to 8, as EXIF counts them; 1, upright, where a file's bytes do not tell.
int orientation_of(const std::vector<unsigned char>& bytes);
// The picture that a camera stored in this orientation.
Picture upright(Picture stored, int orientation);

}  // namespace effv2::runner
