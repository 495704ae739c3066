/* Runs networks that effv2_kernels.save() wrote, with neither Python nor PyTorch.
 *
 *     effv2_network *network = NULL;
 *     if (effv2_load_file("s0.effv2", NULL, &network)) { puts(effv2_error()); exit(1); }
 *     effv2_images images = {photo, 1, 3, 224, 224, 0, 0, 0, 0};
 *     void *outputs[] = {logits};
 *     if (effv2_run(network, &images, outputs, 1, 0)) { puts(effv2_error()); exit(1); }
 *     effv2_free(network);
 *
 * Every function that can fail returns an effv2_status; effv2_error() has the reason in words. Nothing is
 * thrown and nothing is aborted. A network may be used by several threads at once; only effv2_free() must be
 * alone.
 *
 * Images and outputs hold values of the network's dtype: 32-bit floats of "fp32", 16 bits each of "bf16" and
 * "fp16". effv2_describe() says which it is. */
#ifndef EFFV2_H
#define EFFV2_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define EFFV2_API __attribute__((visibility("default")))
#else
#define EFFV2_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Numbers stay what they are; later versions may add more. */
typedef enum effv2_status {
  EFFV2_OK = 0,
  EFFV2_FAILED = 1,           /* a reason that has no number of its own */
  EFFV2_INVALID_ARGUMENT = 2, /* NULL, a negative number, an empty path, a name that does not exist */
  EFFV2_FILE_ERROR = 3,       /* a file cannot be opened or read */
  EFFV2_INVALID_NETWORK = 4,  /* it is no saved network, is damaged, or describes what cannot be run */
  EFFV2_UNKNOWN_VERSION = 5,  /* a saved network of a newer version than this library knows */
  EFFV2_UNAVAILABLE = 6,  /* this processor lacks the dtype or the instruction set, or is of another kind */
  EFFV2_INVALID_SIZE = 7, /* the network cannot take images of this size; the reason has those it takes */
  EFFV2_OUT_OF_MEMORY = 8,
  EFFV2_OVERFLOW = 9 /* a value is beyond what the dtype holds: a weight of the file, or one that was computed
                        while images ran, whose outputs are of no use; "fp32" holds it */
} effv2_status;

/* A network that is ready to run. */
typedef struct effv2_network effv2_network;

/* How to run it. Set all of it to zero, then size, then what is to differ. */
typedef struct effv2_options {
  size_t size; /* sizeof(effv2_options): tells versions of this struct apart */
  const char*
      dtype; /* "fp32", "bf16" or "fp16", NULL for the file's own where this processor has it, else "fp32" */
  const char* isa; /* "avx512" or "avx2" (x86-64), "neon" (64-bit Arm) or "scalar"; NULL for the best one, or
                      that of the environment variable EFFV2_FORCE_ISA */
  int threads;     /* of a call that does not say; 0 for effv2_default_threads() */
} effv2_options;

/* What a network is. Set size; the strings live as long as the network. */
typedef struct effv2_description {
  size_t size;            /* sizeof(effv2_description) */
  const char* dtype;      /* of images and outputs, and what is computed in */
  const char* isa;        /* what it runs on */
  const char* file_dtype; /* that the weights were stored in: "fp32" or "fp16" */
  size_t value_bytes;     /* of a value of images and outputs: 4 or 2 */
  int channels;           /* of an image */
  int outputs;            /* how many there are */
  int has_head;           /* 1: the output is logits. 0: outputs are maps */
  int blocks;             /* how many there are */
  int threads;            /* of a call that does not say */
  int64_t packed_bytes;   /* memory that its weights take */
} effv2_description;

/* Of one image. Logits are the channels of a map of 1 x 1. */
typedef struct effv2_shape {
  int channels, height, width;
} effv2_shape;

/* A block, for one image of some size. Set size; the strings live as long as the network. */
typedef struct effv2_block {
  size_t size;      /* sizeof(effv2_block) */
  const char* kind; /* "stem", "ffn", "attention", ... */
  const char* name; /* of the part of the model that it was made of */
  effv2_shape output;
  int64_t multiply_adds;
} effv2_block;

/* Images in memory. Strides are in values; if all four are 0, images are dense (count, channels, height,
 * width). */
typedef struct effv2_images {
  const void* data; /* values of the network's dtype, aligned like these */
  int64_t count, channels, height, width;
  int64_t image_stride, channel_stride, row_stride, column_stride;
} effv2_images;

/* Reads a network. options may be NULL. The file must not change meanwhile; it is not needed afterwards.
 * *network is NULL where this fails. */
EFFV2_API effv2_status effv2_load_file(const char* path, const effv2_options* options,
                                       effv2_network** network);
/* The same of such a file's bytes, which are not needed afterwards. */
EFFV2_API effv2_status effv2_load_memory(const void* data, size_t bytes, const effv2_options* options,
                                         effv2_network** network);
/* NULL is allowed. No call of this network may be running. */
EFFV2_API void effv2_free(effv2_network* network);

EFFV2_API effv2_status effv2_describe(const effv2_network* network, effv2_description* description);
/* The shape of output `index` for an image of height x width. */
EFFV2_API effv2_status effv2_output_shape(const effv2_network* network, int index, int64_t height,
                                          int64_t width, effv2_shape* shape);
EFFV2_API effv2_status effv2_describe_block(const effv2_network* network, int index, int64_t height,
                                            int64_t width, effv2_block* block);
/* The name of a class, in UTF-8 and one line: NULL where the file has none, or there is no such class. It
 * lives as long as the network. */
EFFV2_API const char* effv2_class_name(const effv2_network* network, int index);
/* Bytes that calls have left for those to come: the more threads and sizes of images, the more. 0 for NULL.
 */
EFFV2_API int64_t effv2_working_bytes(const effv2_network* network);

/* Runs it. outputs: one address per output, each of count x height x width x channels values, one image after
 * the other, channels innermost; all of it is written. threads: 0 for the network's own number; more than the
 * processor has are not started. The result has the same bits for any number of threads. */
EFFV2_API effv2_status effv2_run(const effv2_network* network, const effv2_images* images,
                                 void* const* outputs, int output_count, int threads);
/* The same, and the seconds that each block took, summed over the images of the busiest thread. */
EFFV2_API effv2_status effv2_profile(const effv2_network* network, const effv2_images* images,
                                     void* const* outputs, int output_count, int threads, double* seconds,
                                     int block_count);
/* What this network's instruction set can do in fp32: multiply-adds count two; GFLOP/s of all threads
 * together, measured for about so many milliseconds. threads: as of effv2_run(). */
EFFV2_API effv2_status effv2_measure_peak(const effv2_network* network, int threads, double milliseconds,
                                          double* gflops);

/* A thread for each fast or middle core that this process may run on; small cores of a phone are left out. */
EFFV2_API int effv2_default_threads(void);
/* Why the last call of this thread that failed did so, in a line; "" before one did. Never NULL. */
EFFV2_API const char* effv2_error(void);
/* Of this library, such as "1.2.3". */
EFFV2_API const char* effv2_version(void);

#ifdef __cplusplus
}
#endif

#endif
