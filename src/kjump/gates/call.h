/*
 * The binary interface of calls, for the shims (call64.S, call32.S, call.c) and for Python (kjump/gates/call.py).
 *
 * A call crosses three programs: the gate (gate64.S, gate32.S: between two worlds), the shim behind it (between the
 * mailbox and a C function) and the function. The shim owns the call block, which lies in the image and so keeps
 * its contents from call to call; A fills in its first part when it loads. All numbers are little-endian u64, on
 * i386 too, and addresses are physical.
 */
#ifndef KJUMP_CALL_H
#define KJUMP_CALL_H

#define CALL_SHIM_SIZE 0x1000 /* bytes that a shim may take */

/* The call block. The first part, up to BLOCK_OUT_LENGTH, is given by A. */
#define BLOCK_SIZE 0x1000
#define BLOCK_MAGIC 0x000   /* "KJCALL1\0" */
#define BLOCK_FLAGS 0x008   /* BLOCK_FLAG_* */
#define BLOCK_ENTRY 0x010   /* the function */
#define BLOCK_GATE 0x018    /* the gate; its way back is where the shim leaves */
#define BLOCK_STACK 0x020   /* the upper end of the function's stack */
#define BLOCK_MAILBOX 0x028 /* the mailbox, a page of A; 0: none */
#define BLOCK_COOKIE 0x030  /* 16 bytes: what the mailbox must begin with */
#define BLOCK_IN 0x040      /* where the arguments' bytes are put, and how many fit */
#define BLOCK_IN_SIZE 0x048
#define BLOCK_OUT 0x050 /* where the function writes its output, and how many bytes fit */
#define BLOCK_OUT_SIZE 0x058
#define BLOCK_OUT_LENGTH 0x060    /* how many it has written, also beyond what fits */
#define BLOCK_CALLS 0x068         /* how many calls have begun since the load */
#define BLOCK_FAULT 0x070         /* 0, or 1 + the vector of the exception that ended the function */
#define BLOCK_FAULT_CODE 0x078    /* its error code */
#define BLOCK_FAULT_IP 0x080      /* the instruction */
#define BLOCK_FAULT_ADDRESS 0x088 /* CR2 */
#define BLOCK_TSC_BEGIN 0x090     /* time stamps around the function */
#define BLOCK_TSC_END 0x098
#define BLOCK_KEPT_SP 0x0a0  /* the shim's stack pointer while the function runs */
#define BLOCK_KEPT_CR0 0x0a8 /* control registers, as they are given back */
#define BLOCK_KEPT_CR4 0x0b0
#define BLOCK_IDT_POINTER 0x0b8 /* 10 bytes */
#define BLOCK_ARGS 0x100        /* u64[CALL_ARGS_MAX] */
#define BLOCK_FPU 0x400         /* 512 bytes: A's FPU and SSE registers, as FXSAVE lays them out */
#define BLOCK_IDT 0x600         /* 32 gates of 16 (i386: 8) bytes */

#define BLOCK_FLAG_FPU 1 /* the function may use the FPU and SSE; A's are kept */

#define CALL_ARGS_MAX 64
#define CALL_PAGES_MAX 256

/* The mailbox of a call: one page of A, which may name more. It begins as gate.h says. */
#define MAILBOX_VALUE 0x040 /* what the function returned */
#define MAILBOX_ARGS_COUNT 0x048
#define MAILBOX_POINTERS 0x050   /* bit i: argument i is an offset into the bytes, to become an address */
#define MAILBOX_IN_LENGTH 0x058  /* bytes that go with the arguments, in the pages */
#define MAILBOX_OUT_LENGTH 0x060 /* bytes the function wrote; as many as fit are in the pages */
#define MAILBOX_CALLS 0x068
#define MAILBOX_FAULT 0x070  /* as in the block, four words */
#define MAILBOX_TSC_IN 0x090 /* when the gate was entered */
#define MAILBOX_TSC_BEGIN 0x098
#define MAILBOX_TSC_END 0x0a0
#define MAILBOX_PAGES_COUNT 0x0a8
#define MAILBOX_ARGS 0x100  /* u64[CALL_ARGS_MAX] */
#define MAILBOX_PAGES 0x400 /* u64[CALL_PAGES_MAX]: addresses of pages of A */

#define MAILBOX_OUTCOME_RETURNED 16 /* the function returned */
#define MAILBOX_OUTCOME_FAULTED 17  /* an exception ended it */

#endif
