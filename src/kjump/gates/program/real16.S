/*
 * Switches from 64-bit code to real mode, makes one software interrupt (a BIOS call), and switches back.
 *
 * All of this code lies below 64 KiB, so offsets are physical addresses and segments are 0. The gate's page tables lie
 * below 4 GiB, so 32-bit code can load CR3 again. Interrupts stay off unless the BIOS turns them on itself.
 */
#include "bios.h"

#define CODE32            0x08
#define CODE64            0x10
#define DATA              0x18
#define CODE16            0x20
#define DATA16            0x28
#define MSR_EFER          0xc0000080
#define EFER_LME          (1 << 8)
#define EFER_LMA          (1 << 10)
#define CR0_PE            1

	.text
	.code64
	.globl	bios_interrupt
bios_interrupt:
	pushq	%rbx
	pushq	%rbp
	pushq	%r12
	pushq	%r13
	pushq	%r14
	pushq	%r15
	movb	%dil, interrupt_number
	movq	%rsp, kept_stack
	sgdt	kept_gdt
	sidt	kept_idt
	movq	%cr0, %rax
	movl	%eax, kept_cr0
	movq	%cr3, %rax
	movl	%eax, kept_cr3
	movq	%cr4, %rax
	movl	%eax, kept_cr4
	movl	$MSR_EFER, %ecx
	rdmsr
	movl	%eax, kept_efer
	movl	%edx, kept_efer + 4
	lgdt	gdt_pointer
	pushq	$CODE32
	pushq	$compatible
	lretq

	.code32
compatible:
	movl	$DATA, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	movl	%eax, %fs
	movl	%eax, %gs
	movl	kept_cr0, %eax
	andl	$0x7fffffff, %eax
	movl	%eax, %cr0
	movl	$MSR_EFER, %ecx
	rdmsr
	andl	$~(EFER_LME | EFER_LMA), %eax
	wrmsr
	xorl	%eax, %eax
	movl	%eax, %cr4
	movl	%eax, %cr3
	lidt	real_idt
	ljmp	$CODE16, $narrow

	.code16
narrow:
	movw	$DATA16, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movw	%ax, %fs
	movw	%ax, %gs
	movl	%cr0, %eax
	andl	$~CR0_PE, %eax
	movl	%eax, %cr0
	ljmp	$0, $real
real:
	xorw	%ax, %ax
	movw	%ax, %ds
	movw	%ax, %fs
	movw	%ax, %gs
	movw	%ax, %ss
	movl	$BIOS_BUFFER, %esp
	movw	bios_registers + BIOS_ES, %es
	movl	bios_registers + BIOS_EAX, %eax
	movl	bios_registers + BIOS_EBX, %ebx
	movl	bios_registers + BIOS_ECX, %ecx
	movl	bios_registers + BIOS_EDX, %edx
	movl	bios_registers + BIOS_ESI, %esi
	movl	bios_registers + BIOS_EDI, %edi
	movl	bios_registers + BIOS_EBP, %ebp
	movw	bios_registers + BIOS_DS, %ds
	.byte	0xcd /* int */
interrupt_number:
	.byte	0
	cli
	cld
	pushfl
	popl	%cs:bios_registers + BIOS_FLAGS
	movl	%eax, %cs:bios_registers + BIOS_EAX
	movl	%ebx, %cs:bios_registers + BIOS_EBX
	movl	%ecx, %cs:bios_registers + BIOS_ECX
	movl	%edx, %cs:bios_registers + BIOS_EDX
	movl	%esi, %cs:bios_registers + BIOS_ESI
	movl	%edi, %cs:bios_registers + BIOS_EDI
	movl	%ebp, %cs:bios_registers + BIOS_EBP
	movw	%ds, %cs:bios_registers + BIOS_DS
	movw	%es, %cs:bios_registers + BIOS_ES
	xorw	%ax, %ax
	movw	%ax, %ds
	lgdtl	gdt_pointer
	movl	%cr0, %eax
	orl	$CR0_PE, %eax
	movl	%eax, %cr0
	ljmpl	$CODE32, $protected

	.code32
protected:
	movl	$DATA, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	movl	%eax, %fs
	movl	%eax, %gs
	movl	kept_cr4, %eax
	movl	%eax, %cr4
	movl	kept_cr3, %eax
	movl	%eax, %cr3
	movl	$MSR_EFER, %ecx
	movl	kept_efer, %eax
	andl	$~EFER_LMA, %eax
	movl	kept_efer + 4, %edx
	wrmsr
	movl	kept_cr0, %eax
	movl	%eax, %cr0
	ljmp	$CODE64, $long

	.code64
long:
	movq	kept_stack, %rsp
	lgdt	kept_gdt
	lidt	kept_idt
	popq	%r15
	popq	%r14
	popq	%r13
	popq	%r12
	popq	%rbp
	popq	%rbx
	ret

	.data
	.balign 16
gdt:
	.quad	0
	.quad	0x00cf9a000000ffff /* 0x08: flat 32-bit code */
	.quad	0x00af9a000000ffff /* 0x10: 64-bit code, where the gate has it */
	.quad	0x00cf92000000ffff /* 0x18: flat data */
	.quad	0x00009a000000ffff /* 0x20: 16-bit code */
	.quad	0x000092000000ffff /* 0x28: 16-bit data */
gdt_end:
gdt_pointer:
	.word	gdt_end - gdt - 1
	.quad	gdt
real_idt:
	.word	0x3ff
	.quad	0
kept_gdt:
	.word	0
	.quad	0
kept_idt:
	.word	0
	.quad	0
	.balign 8
kept_stack:
	.quad	0
kept_efer:
	.quad	0
kept_cr0:
	.long	0
kept_cr3:
	.long	0
kept_cr4:
	.long	0
	.globl	bios_registers
bios_registers:
	.fill	10, 4, 0

	/* Stack and buffer for the BIOS; they are part of the image, so that the jump swaps A's contents out and back. */
	.section .bios_scratch, "aw", @nobits
	.skip	BIOS_END - BIOS_STACK

	.section .note.GNU-stack, "", @progbits
