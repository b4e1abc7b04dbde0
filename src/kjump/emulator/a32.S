/*
 * The code of the emulated Linux A on i386: it loads its segment registers, calls the control code at EDX, and
 * stops.
 */
#include "control.h"

	.code32
	.section .text.start, "ax"
	.globl _start
_start:
	movl	$KERNEL_DS_32, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	movl	%eax, %fs
	movl	%eax, %gs
	pushl	$KERNEL_CS_32
	call	.Lhere
.Lhere:
	addl	$.Lloaded - .Lhere, (%esp)
	lret
.Lloaded:
	call	*%edx
	.org A_STOP, 0x90
	hlt
	.section .note.GNU-stack, "", @progbits
