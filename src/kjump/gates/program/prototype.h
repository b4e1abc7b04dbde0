/*
 * Included before a program's own text, so that a function with the wrong parameters does not compile. Only the
 * function's name may be declared here: the program may use every other name.
 */
extern __UINT64_TYPE__ KJUMP_FUNCTION(const __UINT64_TYPE__ *args, __SIZE_TYPE__ n);
