/* Page classes: determines the class of page frames from a kernel's struct pages. */
#include "core.h"

#include <string.h>

#define MAX_ORDER 20

struct job {
    struct page_fields is;
    const uint8_t *structs;
    uint64_t count, first, excluded;
    uint8_t *keep;
    uint64_t keep_bits;
    uint64_t cleared[CLASS_COUNT];
};

/* Return the integer of `size` bytes, 4 or 8, at `at`; every caller passes a constant size, for inlining. */
static inline uint64_t load(const uint8_t *at, size_t size)
{
    if (size == 8) {
        uint64_t value;
        memcpy(&value, at, 8);
        return value;
    }
    uint32_t value;
    memcpy(&value, at, 4);
    return value;
}

/* Tell whether the page with struct `i` can begin a block of that order: blocks lie at multiples of their size. */
static bool fits(const struct job *job, uint64_t i, uint64_t order)
{
    return order <= MAX_ORDER && (job->first + i) % (1ull << order) == 0;
}

/* Return the order of the compound page with head `i`; 0 when it is no head, or the order is invalid. */
static uint64_t compound_order(const struct job *job, uint64_t i, uint64_t flags, const size_t word)
{
    const struct page_fields *is = &job->is;
    if (!(flags & is->head_mask) || i + 1 >= job->count)
        return 0;
    uint64_t order = job->structs[i * is->stride + is->order_at];
    if (!fits(job, i, order))
        return 0;
    /* The last struct must be a tail. If not, the order was read from a wrong offset: kernels have moved it. */
    uint64_t last = i + (1ull << order) - 1;
    if (order && is->tail_mask && last < job->count &&
        !(load(job->structs + last * is->stride + is->tail_at, word) & is->tail_mask))
        return 0;
    return order;
}

/* Return the class of the page with struct `i`, or -1 for none; sets `*pages` to the number of pages it covers. */
static inline __attribute__((always_inline)) int classify_page(const struct job *job, uint64_t i, uint64_t *pages,
                                                               const size_t word)
{
    const struct page_fields *is = &job->is;
    const uint8_t *page = job->structs + i * is->stride;
    uint64_t type = load(page + is->type_at, 4) & is->type_mask;
    uint64_t flags = load(page + is->flags_at, word), wanted = job->excluded;
    *pages = 1;
    if (type == is->buddy || type == is->unaccepted) {
        uint64_t order = load(page + is->private_at, word);
        bool good = order < is->free_orders && fits(job, i, order);
        if (!good && type == is->buddy)
            return -1; /* the struct is damaged: the class is not known */
        *pages = good ? 1ull << order : 1;
        return CLASS_FREE;
    }
    uint64_t order = compound_order(job, i, flags, word);
    bool slab = type == is->slab || (flags & is->slab_mask);
    /* Tail pages use the word of `mapping` for other data; their class is that of their head. */
    bool tail = load(page + is->tail_at, word) & is->tail_mask;
    bool anon = (page[is->mapping_at] & 1) && !slab && !tail;
    bool cache = (flags & is->lru_mask) || (is->swap_mask && (flags & is->swap_mask) == is->swap_mask);
    int class = -1;
    if (cache && !anon)
        class = flags & is->private_mask ? CLASS_CACHE_PRIVATE : CLASS_CACHE;
    else if (anon || type == is->hugetlb ||
             (order && is->huge_mask && (load(page + is->huge_at, word) & is->huge_mask) == is->huge_value))
        class = CLASS_USER;
    if (class >= 0 && (wanted >> class & 1)) {
        *pages = 1ull << order;
        return class;
    }
    if (flags & is->poison_mask)
        return CLASS_HWPOISON;
    return type == is->offline ? CLASS_OFFLINE : class;
}

/* Clear the frames [start, end), which are of `class`, in the bitmap, and count them. */
static void leave_out(struct job *job, int class, uint64_t start, uint64_t end)
{
    job->cleared[class] += shared_clear_bits(job->keep, MIN(start, job->keep_bits), MIN(end, job->keep_bits));
}

static inline __attribute__((always_inline)) void classify_all(struct job *job, const size_t word)
{
    /* Adjacent pages of one class are cleared together: one call for each page would double the time. */
    uint64_t pages, start = job->first, end = start;
    int running = CLASS_FREE;
    for (uint64_t i = 0; i < job->count; i += pages) {
        int class = classify_page(job, i, &pages, word);
        if (class < 0 || !(job->excluded >> class & 1)) {
            pages = 1;
            continue;
        }
        uint64_t frame = job->first + i;
        if (class != running || frame != end) {
            leave_out(job, running, start, end);
            running = class;
            start = frame;
        }
        end = frame + pages;
    }
    leave_out(job, running, start, end);
}

static void classify(struct job *job)
{
    if (job->is.word == 8)
        classify_all(job, 8);
    else
        classify_all(job, 4);
}

/* Return a description of what is wrong with the fields, or NULL. */
static const char *check(const struct job *job, uint64_t size)
{
    const struct page_fields *is = &job->is;
    if (is->stride < 16 || is->stride > 4096 || size % is->stride != 0)
        return "the buffer is not a whole number of page structs";
    if (is->word != 4 && is->word != 8)
        return "a word has 4 or 8 bytes";
    if (MAX(MAX(is->flags_at, is->mapping_at), MAX(is->private_at, is->tail_at)) > is->stride - is->word ||
        is->type_at > is->stride - 4)
        return "a field lies outside the page struct";
    if ((is->head_mask && is->order_at >= 2 * is->stride) ||
        (is->huge_mask && (!is->head_mask || is->huge_at > 2 * is->stride - is->word)))
        return "a field lies outside the first two structs of a compound page";
    return job->first > UINT64_MAX / 2 ? "a page frame number is impossible" : NULL;
}

PyObject *core_classify(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"structs", "first_pfn", "fields", "exclude", "keep", NULL};
    Py_buffer structs, fields, keep;
    struct job job = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*O&y*O&w*:classify", names, &structs, shared_u64, &job.first,
                                     &fields, shared_u64, &job.excluded, &keep))
        return NULL;
    const char *wrong = "the fields of the page struct are not as many as they should be";
    if ((size_t)fields.len == sizeof job.is) {
        memcpy(&job.is, fields.buf, sizeof job.is);
        wrong = check(&job, (uint64_t)structs.len);
    }
    PyObject *result = NULL;
    if (wrong != NULL) {
        PyErr_SetString(PyExc_ValueError, wrong);
    } else {
        job.structs = structs.buf;
        job.count = (uint64_t)structs.len / job.is.stride;
        job.keep = keep.buf;
        job.keep_bits = (uint64_t)keep.len * 8;
        Py_BEGIN_ALLOW_THREADS;
        classify(&job);
        Py_END_ALLOW_THREADS;
        result = PyTuple_New(CLASS_COUNT);
        for (int i = 0; result != NULL && i < CLASS_COUNT; i++)
            PyTuple_SetItem(result, i, PyLong_FromUnsignedLongLong(job.cleared[i]));
    }
    PyBuffer_Release(&structs);
    PyBuffer_Release(&fields);
    PyBuffer_Release(&keep);
    return result;
}
