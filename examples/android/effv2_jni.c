/* What Classifier.kt calls: the functions of effv2.h that it takes to classify an image.
 *
 * A network is a long that holds its address; Classifier keeps it to itself and closes it once. What fails
 * throws IllegalStateException with the library's own words. */
#include <jni.h>
#include <stdlib.h>
#include <string.h>

#include "effv2.h"

#define METHOD(type, name) JNIEXPORT type JNICALL Java_org_example_effv2_Classifier_##name

static void throw_error(JNIEnv* env, const char* why) {
  jclass type = (*env)->FindClass(env, "java/lang/IllegalStateException");
  if (type) (*env)->ThrowNew(env, type, why);
}

static effv2_network* network_of(jlong handle) { return (effv2_network*)(intptr_t)handle; }

/* The network's own values of an array of floats, in new memory; NULL where there is none left. */
static void* values_of(const float* floats, size_t count, size_t value_bytes) {
  void* values = malloc(count * value_bytes);
  if (!values) return NULL;
  if (value_bytes == sizeof(float)) {
    memcpy(values, floats, count * value_bytes);
    return values;
  }
#if defined(__aarch64__) /* elsewhere networks do not run in fp16 */
  for (size_t i = 0; i < count; ++i) ((__fp16*)values)[i] = (__fp16)floats[i];
#endif
  return values;
}

static void to_floats(const void* values, size_t count, size_t value_bytes, float* floats) {
  if (value_bytes == sizeof(float)) memcpy(floats, values, count * value_bytes);
#if defined(__aarch64__)
  for (size_t i = 0; value_bytes != sizeof(float) && i < count; ++i) floats[i] = ((const __fp16*)values)[i];
#endif
}

METHOD(jlong, open)(JNIEnv* env, jclass self, jstring path, jint threads) {
  (void)self;
  /* Without a dtype it is the file's own, where this processor computes in it. */
  effv2_options options = {.size = sizeof options, .threads = threads};
  effv2_network* network = NULL;
  const char* name = (*env)->GetStringUTFChars(env, path, NULL);
  if (!name) return 0;
  if (effv2_load_file(name, &options, &network)) throw_error(env, effv2_error());
  (*env)->ReleaseStringUTFChars(env, path, name);
  return (jlong)(intptr_t)network;
}

METHOD(void, close)(JNIEnv* env, jclass self, jlong handle) {
  (void)env, (void)self;
  effv2_free(network_of(handle));
}

/* In UTF-8, which is not what Java's strings of JNI are; null where the file has no names. */
METHOD(jbyteArray, name)(JNIEnv* env, jclass self, jlong handle, jint index) {
  (void)self;
  const char* name = effv2_class_name(network_of(handle), index);
  if (!name) return NULL;
  const jsize length = (jsize)strlen(name);
  jbyteArray bytes = (*env)->NewByteArray(env, length);
  if (bytes) (*env)->SetByteArrayRegion(env, bytes, 0, length, (const jbyte*)name);
  return bytes;
}

/* The logits of one image (channels, height, width). */
METHOD(jfloatArray, run)(JNIEnv* env, jclass self, jlong handle, jfloatArray image, jint height, jint width) {
  (void)self;
  const effv2_network* network = network_of(handle);
  effv2_description about = {.size = sizeof about};
  effv2_shape shape;
  if (effv2_describe(network, &about) || effv2_output_shape(network, 0, height, width, &shape)) {
    throw_error(env, effv2_error());
    return NULL;
  }
  const size_t count = (size_t)about.channels * (size_t)height * (size_t)width;
  if (!about.has_head || (size_t)(*env)->GetArrayLength(env, image) != count) {
    throw_error(env, about.has_head ? "the image has another size than height and width say"
                                    : "this network returns maps, and no logits");
    return NULL;
  }
  jfloatArray result = (*env)->NewFloatArray(env, shape.channels);
  float* floats = (*env)->GetFloatArrayElements(env, image, NULL);
  void* values = floats ? values_of(floats, count, about.value_bytes) : NULL;
  if (floats) (*env)->ReleaseFloatArrayElements(env, image, floats, JNI_ABORT);
  float* logits = malloc((size_t)shape.channels * sizeof *logits);
  void* output = malloc((size_t)shape.channels * about.value_bytes);
  if (!result || !values || !logits || !output) {
    if (!(*env)->ExceptionCheck(env)) throw_error(env, "there is not enough memory");
    result = NULL;
  } else {
    const effv2_images images = {
        .data = values, .count = 1, .channels = about.channels, .height = height, .width = width};
    if (effv2_run(network, &images, &output, 1, 0)) {
      throw_error(env, effv2_error());
      result = NULL;
    } else {
      to_floats(output, (size_t)shape.channels, about.value_bytes, logits);
      (*env)->SetFloatArrayRegion(env, result, 0, shape.channels, logits);
    }
  }
  free(values);
  free(logits);
  free(output);
  return result;
}
