/*
 * The x86_64 door: the page by which a second kernel enters the gate. layouts.py defines its fields (gate.h), and says
 * why it is a page of its own.
 *
 * B's kernel calls it as any kexec target with preserved context: on B's identity tables, which map this page and B's
 * RAM, with the return address on a stack of one page. The door loads the gate's page tables and jumps to the gate; RSP
 * and [RSP] are passed on unchanged.
 */
#include "gate.h"

#define CR4_LA57_BIT      12

	.code64
	.section .text, "ax"
	.globl _start
_start:
	cli
	cld
	leaq	_start(%rip), %r10
	movq	DOOR_CR3_4LEVEL(%r10), %rcx
	movq	%cr4, %rax
	btq	$CR4_LA57_BIT, %rax
	jnc	.Lown_levels
	movq	DOOR_CR3_5LEVEL(%r10), %rcx
.Lown_levels:
	movq	%rcx, %cr3
	movq	DOOR_GDT_BASE(%r10), %r8
	movq	DOOR_GDT_LIMIT(%r10), %r9
	jmp	*DOOR_GATE(%r10)
	.org DOOR_CR3_4LEVEL
	.org DOOR_SIZE

	.section .note.GNU-stack, "", @progbits
