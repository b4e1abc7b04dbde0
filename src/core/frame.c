/* Single zstd frames, and compressed data that fits in memory. */
#include "core.h"

#include <stdlib.h>
#include <string.h>

int frame_check_level(int level)
{
    if (level >= ZSTD_minCLevel() && level <= ZSTD_maxCLevel())
        return 0;
    PyErr_Format(PyExc_ValueError, "zstd has no compression level %d", level);
    return -1;
}

ZSTD_CCtx *frame_compressor(int level)
{
    ZSTD_CCtx *context = ZSTD_createCCtx();
    if (context != NULL && (ZSTD_isError(ZSTD_CCtx_setParameter(context, ZSTD_c_compressionLevel, level)) ||
                            ZSTD_isError(ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, 1)))) {
        ZSTD_freeCCtx(context);
        return NULL;
    }
    return context;
}

const char *frame_open(ZSTD_DCtx *context, const uint8_t *data, size_t size, uint8_t *out, size_t out_size,
                       const uint32_t *checksum)
{
    /* RFC 8878: magic number (4 bytes), frame header descriptor, whose bit 2 says there is a checksum. */
    static const uint8_t magic[4] = {0x28, 0xb5, 0x2f, 0xfd};
    uint32_t stored;
    if (size < 9 || memcmp(data, magic, sizeof magic) != 0)
        return "no zstd frame begins there";
    if (!(data[4] & 0x04))
        return "it has no checksum";
    if (ZSTD_getFrameContentSize(data, size) != out_size)
        return "it is not of the expected size";
    if (ZSTD_findFrameCompressedSize(data, size) != size)
        return "it does not end where it should";
    memcpy(&stored, data + size - sizeof stored, sizeof stored);
    if (checksum != NULL && stored != *checksum)
        return "its checksum is not the seek table's";
    size_t made = ZSTD_decompressDCtx(context, out, out_size, data, size);
    if (ZSTD_isError(made))
        return ZSTD_getErrorName(made);
    return made == out_size ? NULL : "it is not of the expected size";
}

PyObject *core_compress_bytes(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"data", "level", NULL};
    Py_buffer data;
    int level = 1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*|i:compress_bytes", names, &data, &level))
        return NULL;
    size_t bound = ZSTD_compressBound((size_t)data.len), size = 0;
    PyObject *result = NULL;
    if (frame_check_level(level) == 0) {
        ZSTD_CCtx *context = frame_compressor(level);
        char *out = malloc(bound);
        Py_BEGIN_ALLOW_THREADS;
        if (context != NULL && out != NULL)
            size = ZSTD_compress2(context, out, bound, data.buf, (size_t)data.len);
        Py_END_ALLOW_THREADS;
        if (size == 0 || ZSTD_isError(size))
            PyErr_NoMemory();
        else
            result = PyBytes_FromStringAndSize(out, (Py_ssize_t)size);
        free(out);
        ZSTD_freeCCtx(context);
    }
    PyBuffer_Release(&data);
    return result;
}

/* Decompress all frames of `in`; NULL, or a description of the error. `out` has one byte more than may be filled. */
static const char *inflate(ZSTD_DStream *stream, ZSTD_inBuffer *in, ZSTD_outBuffer *out)
{
    size_t left = 1;
    while (left != 0 || in->pos < in->size) {
        size_t before = in->pos + out->pos;
        left = ZSTD_decompressStream(stream, out, in);
        if (ZSTD_isError(left))
            return ZSTD_getErrorName(left);
        if (out->pos == out->size)
            return "it holds more than it should";
        if (left != 0 && in->pos + out->pos == before)
            return "it ends in the middle of a frame";
    }
    return NULL;
}

PyObject *core_decompress_bytes(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"data", "max_size", NULL};
    Py_buffer data;
    uint64_t most;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*O&:decompress_bytes", names, &data, shared_u64, &most))
        return NULL;
    PyObject *result = NULL;
    const char *wrong = NULL;
    /* The kernel allocates only the pages that are written. */
    size_t room = (size_t)MIN(most, PTRDIFF_MAX - 1) + 1;
    ZSTD_inBuffer in = {data.buf, (size_t)data.len, 0};
    ZSTD_outBuffer out = {malloc(room), room, 0};
    ZSTD_DStream *stream = ZSTD_createDStream();
    if (stream == NULL || out.dst == NULL) {
        PyErr_NoMemory();
    } else {
        Py_BEGIN_ALLOW_THREADS;
        wrong = inflate(stream, &in, &out);
        Py_END_ALLOW_THREADS;
        if (wrong != NULL)
            PyErr_Format(core_damaged, "zstd data of %zd bytes is damaged near byte %zu: %s", data.len, in.pos, wrong);
        else
            result = PyBytes_FromStringAndSize(out.dst, (Py_ssize_t)out.pos);
    }
    free(out.dst);
    ZSTD_freeDStream(stream);
    PyBuffer_Release(&data);
    return result;
}

PyObject *core_decompress_frame(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"data", "size", "checksum", NULL};
    Py_buffer data;
    PyObject *given = Py_None, *result = NULL;
    uint64_t size, expected = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*O&|O:decompress_frame", names, &data, shared_u64, &size, &given))
        return NULL;
    if (given != Py_None && !shared_u64(given, &expected)) {
        PyBuffer_Release(&data);
        return NULL;
    }
    const char *wrong = NULL;
    uint32_t checksum = (uint32_t)expected;
    ZSTD_DCtx *context = ZSTD_createDCtx();
    if (size > MAX_FRAME_SIZE)
        PyErr_Format(PyExc_ValueError, "a frame of %llu bytes is larger than any here", (unsigned long long)size);
    else if (context == NULL)
        PyErr_NoMemory();
    else
        result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size); /* unpacked in place: there may be a lot of it */
    if (result != NULL) {
        uint8_t *out = (uint8_t *)PyBytes_AsString(result);
        Py_BEGIN_ALLOW_THREADS;
        wrong = frame_open(context, data.buf, (size_t)data.len, out, size, given == Py_None ? NULL : &checksum);
        Py_END_ALLOW_THREADS;
        if (wrong != NULL) {
            PyErr_Format(core_damaged, "a frame of the stream is damaged: %s", wrong);
            Py_CLEAR(result);
        }
    }
    ZSTD_freeDCtx(context);
    PyBuffer_Release(&data);
    return result;
}
