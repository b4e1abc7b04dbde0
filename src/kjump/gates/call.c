/*
 * The shim's C half: copies the request from A's mailbox into the image, calls the function, and writes the reply.
 *
 * It runs on the function's stack with the gate's identity tables loaded, which map all of physical memory. It is
 * built position independent and without FPU instructions; FPU and SSE are enabled for the function's run only.
 */
#include <stddef.h>
#include <stdint.h>

#include "call.h"
#include "gate.h"

#define PAGE_SIZE 4096u

/* call64.S, call32.S: runs the function with exceptions caught; tells whether the function returned. */
extern int run_function(uint8_t *block, uint64_t *value, size_t count) __attribute__((visibility("hidden")));

static volatile uint64_t *word(uint8_t *base, unsigned offset)
{
    return (volatile uint64_t *)(base + offset);
}

static uint8_t *address(uint8_t *base, unsigned offset)
{
    return (uint8_t *)(uintptr_t)*word(base, offset);
}

static void copy(uint8_t *to, const uint8_t *from, uint64_t length)
{
    size_t count = length;

    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
}

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* Returns A's mailbox, or NULL when there is none or its cookie differs. */
static uint8_t *find_mailbox(uint8_t *block)
{
    uint8_t *mailbox = address(block, BLOCK_MAILBOX);

    if (!mailbox || *word(mailbox, MAILBOX_COOKIE) != *word(block, BLOCK_COOKIE) ||
        *word(mailbox, MAILBOX_COOKIE + 8) != *word(block, BLOCK_COOKIE + 8))
        return NULL;
    return mailbox;
}

/* Copies `length` bytes between the contiguous `buffer` and A's pages, as many as the pages hold. */
static void transfer(uint8_t *mailbox, uint8_t *buffer, uint64_t length, int to_pages)
{
    uint64_t pages = least(*word(mailbox, MAILBOX_PAGES_COUNT), CALL_PAGES_MAX);
    uint64_t i;

    for (i = 0; i < pages && length; i++) {
        uint8_t *page = address(mailbox, MAILBOX_PAGES + 8 * (unsigned)i);
        uint64_t part = least(length, PAGE_SIZE);

        if (to_pages)
            copy(page, buffer, part);
        else
            copy(buffer, page, part);
        buffer += part;
        length -= part;
    }
}

static size_t take_arguments(uint8_t *mailbox, uint8_t *block)
{
    uint64_t count = least(*word(mailbox, MAILBOX_ARGS_COUNT), CALL_ARGS_MAX);
    uint64_t pointers = *word(mailbox, MAILBOX_POINTERS);
    uint64_t length = least(*word(mailbox, MAILBOX_IN_LENGTH), *word(block, BLOCK_IN_SIZE));
    unsigned i;

    transfer(mailbox, address(block, BLOCK_IN_ADDRESS), length, 0);
    for (i = 0; i < count; i++) {
        uint64_t value = *word(mailbox, MAILBOX_ARGS + 8 * i);

        if (pointers >> i & 1)
            value += *word(block, BLOCK_IN_ADDRESS);
        *word(block, BLOCK_ARGS + 8 * i) = value;
    }
    return count;
}

static void report(uint8_t *mailbox, uint8_t *block, uint64_t value, int returned)
{
    unsigned i;

    transfer(mailbox, address(block, BLOCK_OUT_ADDRESS),
             least(*word(block, BLOCK_OUT_LENGTH), *word(block, BLOCK_OUT_SIZE)), 1);
    *word(mailbox, MAILBOX_VALUE) = value;
    *word(mailbox, MAILBOX_OUT_LENGTH) = *word(block, BLOCK_OUT_LENGTH);
    *word(mailbox, MAILBOX_CALLS) = *word(block, BLOCK_CALLS);
    for (i = 0; i < 4; i++)
        *word(mailbox, MAILBOX_FAULT + 8 * i) = *word(block, BLOCK_FAULT + 8 * i);
    *word(mailbox, MAILBOX_TSC_IN) = *word(address(block, BLOCK_GATE), GATE_TSC_IN);
    *word(mailbox, MAILBOX_TSC_BEGIN) = *word(block, BLOCK_TSC_BEGIN);
    *word(mailbox, MAILBOX_TSC_END) = *word(block, BLOCK_TSC_END);
    *word(mailbox, MAILBOX_OUTCOME) = returned ? MAILBOX_OUTCOME_RETURNED : MAILBOX_OUTCOME_FAULTED;
}

static uint64_t time_stamp(void)
{
    uint32_t low, high;

    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (uint64_t)high << 32 | low;
}

__attribute__((visibility("hidden"))) void call_function(uint8_t *block)
{
    uint8_t *mailbox = find_mailbox(block);
    size_t count = mailbox ? take_arguments(mailbox, block) : 0;
    uint64_t value = 0;
    int returned;

    *word(block, BLOCK_CALLS) += 1;
    *word(block, BLOCK_OUT_LENGTH) = 0;
    *word(block, BLOCK_FAULT) = 0;
    *word(block, BLOCK_TSC_BEGIN) = time_stamp();
    returned = run_function(block, &value, count);
    *word(block, BLOCK_TSC_END) = time_stamp();
    if (mailbox)
        report(mailbox, block, value, returned);
}
