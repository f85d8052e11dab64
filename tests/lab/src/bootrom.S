# A boot ROM for the emulated hosts: loads a kernel as it runs, and enters it.
#
# The usual way (BIOS, boot loader, kernel that unpacks itself) costs about 1.2 billion emulated
# instructions, 20 s of a busy core, before the kernel's first line. This ROM is called by the BIOS
# between its own initialisation and its search for a boot device. It asks the BIOS for the memory map,
# reads the sectors of the disk into the places that the disk's first sector names, and enters the
# kernel by the PVH protocol (Documentation/arch/x86/boot.rst and include/xen/interface/hvm/start_info.h
# of the Linux source). ATA registers are those of the primary channel (ATA/ATAPI-6).
#
# Low memory: 5000h memory map, 6000h start_info (a chunk of the disk), 7000h the disk's first sector.

	.set	MEMMAP, 0x5000
	.set	START_INFO, 0x6000
	.set	MEMMAP_ENTRIES, START_INFO + 48
	.set	TABLE, 0x7000
	.set	ROM, 0xd0000		# where machine.rs puts this

	.code16
	.globl	_start
_start:
	.byte	0x55, 0xaa, 1		# option ROM of one block of 512 bytes; entered at offset 3
	cli
	cld
	xorw	%ax, %ax
	movw	%ax, %es
	movw	$MEMMAP, %di
	xorw	%bp, %bp		# number of entries
	xorl	%ebx, %ebx
1:	movl	$0xe820, %eax
	movl	$20, %ecx
	movl	$0x534d4150, %edx	# "SMAP"
	int	$0x15
	jc	2f
	movl	$0, %es:20(%di)		# PVH entries end with a reserved word
	addw	$24, %di
	incw	%bp
	testl	%ebx, %ebx
	jnz	1b
2:	inb	$0x92, %al		# A20
	orb	$2, %al
	outb	%al, $0x92
	lgdtl	%cs:gdtr
	movl	%cr0, %eax
	orb	$1, %al
	movl	%eax, %cr0
	ljmpl	$8, $(ROM + protected)

	.code32
protected:
	movw	$16, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movl	$TABLE, %esp		# grows down towards start_info, a few words only
	movzwl	%bp, %ebp
	movl	$0x3f6, %edx		# device control: nIEN, nobody serves interrupts yet
	movb	$2, %al
	outb	%al, %dx

	xorl	%ebx, %ebx		# first sector: the table
	movl	$1, %ecx
	movl	$TABLE, %edi
	call	read
	movl	$(TABLE + 8), %esi	# behind entry point and number of chunks
3:	movl	(%esi), %ebx		# sector
	movl	4(%esi), %ecx		# number of sectors, at most 65535
	movl	8(%esi), %edi		# physical address
	addl	$12, %esi
	call	read
	decl	TABLE + 4
	jnz	3b
	movl	%ebp, MEMMAP_ENTRIES
	movl	$START_INFO, %ebx
	jmp	*TABLE

# Reads %ecx sectors from sector %ebx on to %edi (READ SECTORS EXT). Changes %eax, %ebx, %ecx, %edx.
read:
	movl	$0x1f6, %edx		# device 0, LBA
	movb	$0x40, %al
	outb	%al, %dx
	movl	$0x1f2, %edx		# count, high byte first
	movb	%ch, %al
	outb	%al, %dx
	movb	%cl, %al
	outb	%al, %dx
	incl	%edx			# 1f3: LBA bits 24-31, then 0-7
	roll	$8, %ebx
	movb	%bl, %al
	outb	%al, %dx
	rorl	$8, %ebx
	movb	%bl, %al
	outb	%al, %dx
	incl	%edx			# 1f4: 32-39, then 8-15
	xorl	%eax, %eax
	outb	%al, %dx
	movb	%bh, %al
	outb	%al, %dx
	incl	%edx			# 1f5: 40-47, then 16-23
	xorl	%eax, %eax
	outb	%al, %dx
	shrl	$16, %ebx
	movb	%bl, %al
	outb	%al, %dx
	movl	$0x1f7, %edx
	movb	$0x24, %al		# READ SECTORS EXT
	outb	%al, %dx
	movl	%ecx, %ebx
4:	movl	$0x1f7, %edx
5:	inb	%dx, %al		# BSY clear, then DRQ or ERR
	testb	$0x80, %al
	jnz	5b
	testb	$0x01, %al
	jnz	failed
	testb	$0x08, %al
	jz	5b
	movl	$0x1f0, %edx
	movl	$128, %ecx
	rep insl
	decl	%ebx
	jnz	4b
	ret

# Says so on the console and stops.
failed:
	movl	$0x3f8, %edx
	movb	$'!', %al
	outb	%al, %dx
6:	hlt
	jmp	6b

	.balign	8
gdt:	.quad	0, 0x00cf9b000000ffff, 0x00cf93000000ffff
gdtr:	.word	gdtr - gdt - 1
	.long	ROM + gdt
