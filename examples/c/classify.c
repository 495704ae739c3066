/* Classifies an image with a network that effv2_kernels.save() wrote.
 *
 *     classify s0.effv2 [HEIGHT WIDTH [IMAGE.raw]]
 *
 * IMAGE.raw holds channels x height x width 32-bit floats, normalised as the network was trained; without it
 * the image is random. Prints the five largest logits, each with the number of its class. */
#include <stdio.h>
#include <stdlib.h>

#include "effv2.h"

static int fail(const char* what) {
  fprintf(stderr, "classify: %s\n", what);
  return 1;
}

static int read_image(const char* path, float* image, size_t count) {
  FILE* file = fopen(path, "rb");
  if (!file) return 0;
  const size_t found = fread(image, sizeof *image, count, file);
  const int whole = found == count && fgetc(file) == EOF;
  fclose(file);
  return whole;
}

static void print_largest(float* logits, int classes) {
  for (int place = 0; place < 5 && place < classes; ++place) {
    int best = -1;
    for (int i = 0; i < classes; ++i) {
      if (logits[i] == logits[i] && (best < 0 || logits[i] > logits[best])) best = i;
    }
    if (best < 0) return;
    printf("%d %.9g\n", best, logits[best]);
    logits[best] = 0.0f / 0.0f; /* printed */
  }
}

static int classify(const effv2_network* network, int64_t height, int64_t width, const char* path) {
  effv2_description about = {.size = sizeof about};
  effv2_shape shape;
  if (effv2_describe(network, &about)) return fail(effv2_error());
  if (!about.has_head) return fail("this network returns maps, and no logits");
  if (effv2_output_shape(network, 0, height, width, &shape)) return fail(effv2_error());
  const size_t count = (size_t)about.channels * (size_t)height * (size_t)width;
  float *image = malloc(count * sizeof *image), *logits = malloc((size_t)shape.channels * sizeof *logits);
  int status = 0;
  if (!image || !logits) {
    status = fail("there is not enough memory");
  } else if (path && !read_image(path, image, count)) {
    status = fail("the image cannot be read, or has another size");
  } else {
    for (size_t i = 0; !path && i < count; ++i) image[i] = (float)rand() / (float)RAND_MAX * 2 - 1;
    const effv2_images images = {
        .data = image, .count = 1, .channels = about.channels, .height = height, .width = width};
    void* outputs[] = {logits};
    if (effv2_run(network, &images, outputs, 1, 0)) {
      status = fail(effv2_error());
    } else {
      print_largest(logits, shape.channels);
    }
  }
  free(image);
  free(logits);
  return status;
}

int main(int argc, char** argv) {
  if (argc != 2 && argc != 4 && argc != 5) return fail("usage: classify NETWORK [HEIGHT WIDTH [IMAGE.raw]]");
  const int64_t height = argc > 2 ? atoll(argv[2]) : 224, width = argc > 2 ? atoll(argv[3]) : 224;
  /* In fp32, whatever the weights were stored in: that is what images are here. */
  const effv2_options options = {.size = sizeof options, .dtype = "fp32"};
  effv2_network* network = NULL;
  if (effv2_load_file(argv[1], &options, &network)) return fail(effv2_error());
  const int status = classify(network, height, width, argc > 4 ? argv[4] : NULL);
  effv2_free(network);
  return status;
}
