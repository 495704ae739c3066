package org.example.effv2

import android.graphics.Bitmap
import kotlin.math.exp
import kotlin.math.min

/** A class of the network: its number, its name where the file has names, and how probable it is. */
data class Prediction(val index: Int, val name: String?, val probability: Float)

/**
 * Classifies photos with a network that `python -m effv2_kernels convert` wrote.
 *
 * The file must be readable by its path: copy it out of the app's assets first. [size] is the side of the
 * images that the network was made for. [threads]: 0 for a thread for each fast or middle core.
 *
 * Throws IllegalStateException, with the library's reason, for a file or image that it cannot take.
 */
class Classifier(path: String, private val size: Int = 224, threads: Int = 0) : AutoCloseable {
    private var network = open(path, threads)

    /** The [top] most probable classes of what is in the middle of the photo. */
    @Synchronized
    fun classify(photo: Bitmap, top: Int = 5): List<Prediction> {
        check(network != 0L) { "this classifier is closed" }
        val logits = run(network, prepared(photo), size, size)
        val largest = logits.max()
        val shares = logits.map { exp(it - largest) }
        val sum = shares.sum()
        return shares.indices.sortedByDescending { shares[it] }.take(top).map {
            Prediction(it, name(network, it)?.toString(Charsets.UTF_8), shares[it] / sum)
        }
    }

    @Synchronized
    override fun close() {
        close(network)
        network = 0L
    }

    /** (3, size, size): 95 % of the shorter side, normalised by ImageNet's mean and deviation. */
    private fun prepared(photo: Bitmap): FloatArray {
        val side = (min(photo.width, photo.height) * 0.95f).toInt()
        val middle =
            Bitmap.createBitmap(photo, (photo.width - side) / 2, (photo.height - side) / 2, side, side)
        val small = Bitmap.createScaledBitmap(middle, size, size, true)
        val pixels = IntArray(size * size)
        small.getPixels(pixels, 0, size, 0, 0, size, size)
        val image = FloatArray(3 * pixels.size)
        for (channel in 0 until 3) {
            for (i in pixels.indices) {
                val level = (pixels[i] shr (16 - 8 * channel)) and 0xff
                image[channel * pixels.size + i] = (level / 255f - MEAN[channel]) / DEVIATION[channel]
            }
        }
        return image
    }

    private companion object {
        val MEAN = floatArrayOf(0.485f, 0.456f, 0.406f)
        val DEVIATION = floatArrayOf(0.229f, 0.224f, 0.225f)

        init {
            System.loadLibrary("effv2_jni")
        }

        @JvmStatic external fun open(path: String, threads: Int): Long

        @JvmStatic external fun close(network: Long)

        @JvmStatic external fun name(network: Long, index: Int): ByteArray?

        @JvmStatic external fun run(network: Long, image: FloatArray, height: Int, width: Int): FloatArray
    }
}
