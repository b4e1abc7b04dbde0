/* The module object: its functions and exceptions. Docstrings are in _core.pyi. */
#include "core.h"

PyObject *core_cancelled, *core_damaged;

/* Add an exception derived from one of kjump.errors; NULL with an exception on failure. */
static PyObject *add_exception(PyObject *module, const char *name, const char *base_name, const char *doc)
{
    PyObject *errors = PyImport_ImportModule("kjump.errors");
    PyObject *base = errors == NULL ? NULL : PyObject_GetAttrString(errors, base_name);
    PyObject *made = base == NULL ? NULL : PyErr_NewExceptionWithDoc(name, doc, base, NULL);
    Py_XDECREF(base);
    Py_XDECREF(errors);
    if (made != NULL && PyModule_AddObjectRef(module, name + sizeof "kjump._core." - 1, made) != 0)
        Py_CLEAR(made);
    return made;
}

static PyMethodDef functions[] = {
    FUNCTION(core, classify, "Clear the bits of pages of some classes in a bitmap."),
    FUNCTION(core, bitmap_runs, "Return the runs of set or clear bits of a bitmap."),
    FUNCTION(core, zero_pages, "Return a bitmap of the pages that are all zero."),
    FUNCTION(core, compress, "Compress spans of memory to the frames of a seekable zstd stream."),
    FUNCTION(core, restore, "Decompress frames of a seekable zstd stream into spans of memory."),
    FUNCTION(core, compress_bytes, "Compress to one zstd frame with content size and checksum."),
    FUNCTION(core, decompress_bytes, "Decompress whole zstd frames of any kind."),
    FUNCTION(core, decompress_frame, "Check and decompress one frame of a seekable stream."),
    FUNCTION(core, shadow_runs, "Follow the kernel's indirection list of a load."),
    FUNCTION(core, time_stamp, "Return the CPU's time stamp counter."),
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "kjump._core",
    .m_doc = "The hot loops over memory, without the interpreter's lock.",
    .m_size = -1,
    .m_methods = functions,
};

PyMODINIT_FUNC PyInit__core(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (module == NULL)
        return NULL;
    core_cancelled = add_exception(module, "kjump._core.Cancelled", "KjumpError",
                                   "The progress callback returned False, and the work was stopped.");
    core_damaged = core_cancelled == NULL
                       ? NULL
                       : add_exception(module, "kjump._core.Damaged", "ImageError",
                                       "Compressed data is damaged, cut off, or not what was written.");
    if (core_damaged == NULL)
        Py_CLEAR(module);
    return module;
}
