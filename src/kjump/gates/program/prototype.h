/*
 * Included before a program's own text, so that a function with other parameters than it is called with does not
 * compile. No name but the function's may be declared here: the program may have any other for itself.
 */
extern __UINT64_TYPE__ KJUMP_FUNCTION(const __UINT64_TYPE__ *args, __SIZE_TYPE__ n);
