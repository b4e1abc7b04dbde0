/* Writes its first argument, a string, in capitals: bytes go in and bytes come out. Returns the length. */
#include "kjump.h"

uint64_t upper(const uint64_t *args, size_t n)
{
    const char *text = (const char *)(uintptr_t)args[0];
    size_t i;

    if (n < 2)
        return 0;
    for (i = 0; i < args[1]; i++) {
        char c = text[i];

        if (c >= 'a' && c <= 'z')
            c -= 'a' - 'A';
        kjump_put(&c, 1);
    }
    return args[1];
}
