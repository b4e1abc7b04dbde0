/* Compression of single pages: zstd is linked; zlib, lzo and snappy are opened (dlopen) at their first use. */
#include "dump.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#define LZO_WORK ((size_t)1 << 17) /* LZO1X_1_MEM_COMPRESS: 16384 pointers of 8 bytes */

/* Signatures of the libraries' documented interfaces. */
static int (*zlib_compress)(uint8_t *out, unsigned long *room, const uint8_t *data, unsigned long size, int level);
static int (*zlib_uncompress)(uint8_t *out, unsigned long *room, const uint8_t *data, unsigned long size);
static int (*lzo_compress)(const uint8_t *data, size_t size, uint8_t *out, size_t *room, void *work);
static int (*lzo_decompress)(const uint8_t *data, size_t size, uint8_t *out, size_t *room, void *work);
static int (*snappy_pack)(const uint8_t *data, size_t size, uint8_t *out, size_t *room);
static int (*snappy_unpack)(const uint8_t *data, size_t size, uint8_t *out, size_t *room);

static bool find(void *library, const char *name, void *function)
{
    void *found = library == NULL ? NULL : dlsym(library, name);
    if (found != NULL)
        memcpy(function, &found, sizeof found);
    return found != NULL;
}

const char *codec_open(uint32_t method)
{
    if (method == METHOD_ZLIB && zlib_uncompress == NULL) {
        void *library = dlopen("libz.so.1", RTLD_NOW);
        if (!find(library, "compress2", &zlib_compress) || !find(library, "uncompress", &zlib_uncompress))
            return "libz.so.1 (apt install zlib1g)";
    }
    if (method == METHOD_LZO && lzo_decompress == NULL) {
        void *library = dlopen("liblzo2.so.2", RTLD_NOW);
        if (!find(library, "lzo1x_1_compress", &lzo_compress) ||
            !find(library, "lzo1x_decompress_safe", &lzo_decompress))
            return "liblzo2.so.2 (apt install liblzo2-2)";
    }
    if (method == METHOD_SNAPPY && snappy_unpack == NULL) {
        void *library = dlopen("libsnappy.so.1", RTLD_NOW);
        if (!find(library, "snappy_compress", &snappy_pack) || !find(library, "snappy_uncompress", &snappy_unpack))
            return "libsnappy.so.1 (apt install libsnappy1v5)";
    }
    return NULL;
}

bool codec_prepare(struct codec *codec, uint32_t method, int level)
{
    if (method == METHOD_LZO)
        return codec->work != NULL || (codec->work = malloc(LZO_WORK)) != NULL;
    if (method != METHOD_ZSTD || codec->zstd_in != NULL)
        return true;
    codec->zstd_in = ZSTD_createCCtx();
    return codec->zstd_in != NULL &&
           !ZSTD_isError(ZSTD_CCtx_setParameter(codec->zstd_in, ZSTD_c_compressionLevel, level));
}

void codec_free(struct codec *codec)
{
    ZSTD_freeCCtx(codec->zstd_in);
    ZSTD_freeDCtx(codec->zstd_out);
    free(codec->work);
}

size_t codec_compress(struct codec *codec, uint32_t method, int level, const uint8_t *page, uint8_t *out, size_t room)
{
    size_t size = room;
    unsigned long long_size = room;
    bool good = false;
    if (method == METHOD_ZSTD) {
        size = ZSTD_compress2(codec->zstd_in, out, room, page, PAGE);
        good = !ZSTD_isError(size);
    } else if (method == METHOD_ZLIB) {
        good = zlib_compress(out, &long_size, page, PAGE, level) == 0;
        size = long_size;
    } else if (method == METHOD_LZO) {
        good = lzo_compress(page, PAGE, out, &size, codec->work) == 0;
    } else if (method == METHOD_SNAPPY) {
        good = snappy_pack(page, PAGE, out, &size) == 0;
    }
    return good && size < PAGE ? size : 0;
}

bool codec_decompress(struct codec *codec, uint32_t method, const uint8_t *data, size_t size, uint8_t *page)
{
    size_t made = PAGE;
    unsigned long long_made = PAGE;
    switch (method) {
    case METHOD_NONE:
        memcpy(page, data, MIN(size, PAGE));
        return size == PAGE;
    case METHOD_ZSTD:
        if (codec->zstd_out == NULL && (codec->zstd_out = ZSTD_createDCtx()) == NULL)
            return false;
        return ZSTD_decompressDCtx(codec->zstd_out, page, PAGE, data, size) == PAGE;
    case METHOD_ZLIB:
        return zlib_uncompress(page, &long_made, data, size) == 0 && long_made == PAGE;
    case METHOD_LZO:
        return lzo_decompress(data, size, page, &made, NULL) == 0 && made == PAGE;
    case METHOD_SNAPPY:
        return snappy_unpack(data, size, page, &made) == 0 && made == PAGE;
    default:
        return false;
    }
}
