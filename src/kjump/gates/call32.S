/*
 * The i386 shim: the counterpart of call64.S for gate32.S. layouts.py defines its interface (call.h).
 *
 * The gate enters it in flat 32-bit protected mode, paging off, ESI = the call block. It calls the function by the
 * i386 System V ABI: (arguments, their number, the block) on the stack, the result in EDX:EAX.
 */
#include "call.h"
#include "gate.h"

#define CODE_SELECTOR     0x10 /* in the gate's GDT */
#define CR0_MP            (1 << 1)
#define CR0_EM            (1 << 2)
#define CR0_TS            (1 << 3)
#define CR4_OSFXSR        (1 << 9)
#define CR4_OSXMMEXCPT    (1 << 10)
#define HAS_ERROR_CODE    0x60227d00

	.code32
	.section .text.start, "ax"
	.globl _start
_start:
	movl	BLOCK_STACK(%esi), %esp
	movl	%esi, %ebx
	pushl	%esi
	call	call_function
	movl	BLOCK_GATE(%ebx), %eax
	addl	$GATE_WAY_BACK, %eax
	jmp	*%eax

/* int run_function(uint8_t *block, uint64_t *value, size_t count) */
	.globl	run_function
	.hidden	run_function
run_function:
	pushl	%ebx
	pushl	%ebp
	pushl	%esi
	pushl	%edi
	movl	20(%esp), %ebx
	movl	28(%esp), %edi
	movl	%esp, BLOCK_KEPT_SP(%ebx)
	movl	%cr0, %eax
	movl	%eax, BLOCK_KEPT_CR0(%ebx)
	movl	%cr4, %eax
	movl	%eax, BLOCK_KEPT_CR4(%ebx)
	call	own_base
	movl	%ebx, block - _start(%ebp)
	call	catch_exceptions
	testl	$BLOCK_FLAG_FPU, BLOCK_FLAGS(%ebx)
	jz	.Lcall
	call	open_fpu
.Lcall:
	/* The stack is aligned to 16 bytes at the call, which code with SSE requires. */
	andl	$~15, %esp
	pushl	$0
	pushl	%ebx
	pushl	%edi
	leal	BLOCK_ARGS(%ebx), %eax
	pushl	%eax
	call	*BLOCK_ENTRY(%ebx)
	movl	%eax, %esi
	movl	%edx, %edi
	call	own_base
	movl	block - _start(%ebp), %ebx
	movl	BLOCK_KEPT_SP(%ebx), %esp
	movl	24(%esp), %ecx
	movl	%esi, (%ecx)
	movl	%edi, 4(%ecx)
	movl	$1, %edx
	jmp	leave_function

/* EBX = block, EDX = the value to return. Restores the shim's stack pointer, which the function may have changed. */
leave_function:
	cli
	cld
	movl	BLOCK_KEPT_SP(%ebx), %esp
	testl	$BLOCK_FLAG_FPU, BLOCK_FLAGS(%ebx)
	jz	.Lfpu_back
	clts
	fxrstor	BLOCK_FPU(%ebx)
.Lfpu_back:
	/* CR4 first: a function may have set CR4.CET, and CR0.WP cannot be cleared while CET is set. */
	movl	BLOCK_KEPT_CR4(%ebx), %eax
	movl	%eax, %cr4
	movl	BLOCK_KEPT_CR0(%ebx), %eax
	movl	%eax, %cr0
	movl	%edx, %eax
	popl	%edi
	popl	%esi
	popl	%ebp
	popl	%ebx
	ret

/* EBP = the address of _start. */
own_base:
	call	.Lhere
.Lhere:
	popl	%ebp
	subl	$.Lhere - _start, %ebp
	ret

/* Save A's FPU and SSE registers and initialize them for the function. EBX = block, EBP = _start. Spoils EAX. */
open_fpu:
	movl	%cr0, %eax
	andl	$~(CR0_EM | CR0_TS), %eax
	orl	$CR0_MP, %eax
	movl	%eax, %cr0
	movl	%cr4, %eax
	orl	$(CR4_OSFXSR | CR4_OSXMMEXCPT), %eax
	movl	%eax, %cr4
	fxsave	BLOCK_FPU(%ebx)
	fninit
	ldmxcsr	fresh_mxcsr - _start(%ebp)
	ret

/* Fill the IDT with gates to the stubs below and load it. EBX = block, EBP = _start. Spoils EAX, ECX, EDX, ESI. */
catch_exceptions:
	leal	stubs - _start(%ebp), %eax
	leal	BLOCK_IDT(%ebx), %esi
	movl	$32, %ecx
.Lnext_gate:
	movw	%ax, (%esi)
	movw	$CODE_SELECTOR, 2(%esi)
	movw	$0x8e00, 4(%esi)
	movl	%eax, %edx
	shrl	$16, %edx
	movw	%dx, 6(%esi)
	addl	$stubs_size, %eax
	addl	$8, %esi
	loop	.Lnext_gate
	leal	BLOCK_IDT(%ebx), %eax
	movw	$(32 * 8 - 1), BLOCK_IDT_POINTER(%ebx)
	movl	%eax, BLOCK_IDT_POINTER + 2(%ebx)
	lidt	BLOCK_IDT_POINTER(%ebx)
	ret

	.balign 8
stubs:
	.set	vector, 0
	.rept	32
	.balign 8
	pushl	$vector
	jmp	exception
	.balign 8
	.set	vector, vector + 1
	.endr
	.set	stubs_size, (. - stubs) / 32

exception:
	call	own_base
	movl	block - _start(%ebp), %ebx
	popl	%ecx
	leal	1(%ecx), %eax
	movl	%eax, BLOCK_FAULT(%ebx)
	movl	$HAS_ERROR_CODE, %eax
	xorl	%edx, %edx
	btl	%ecx, %eax
	jnc	.Lno_error_code
	popl	%edx
.Lno_error_code:
	movl	%edx, BLOCK_FAULT_CODE(%ebx)
	movl	(%esp), %eax
	movl	%eax, BLOCK_FAULT_IP(%ebx)
	movl	%cr2, %eax
	movl	%eax, BLOCK_FAULT_ADDRESS(%ebx)
	xorl	%edx, %edx
	jmp	leave_function

	.balign 8
block:
	.long	0
fresh_mxcsr:
	.long	0x1f80

	.section .note.GNU-stack, "", @progbits
