/*
 * The code of the emulated Linux A on x86_64: it loads its segment registers, calls the control code at RDX, and
 * stops.
 */
#include "control.h"

	.code64
	.section .text.start, "ax"
	.globl _start
_start:
	movl	$KERNEL_DS, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	pushq	$KERNEL_CS
	leaq	.Lloaded(%rip), %rax
	pushq	%rax
	lretq
.Lloaded:
	call	*%rdx
	.org A_STOP, 0x90
	hlt
	.section .note.GNU-stack, "", @progbits
