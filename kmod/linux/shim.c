// SPDX-License-Identifier: GPL-2.0
/*
 * The kernel's macros and inline functions that Rust can't call, one plain
 * function each. No policy: what a function is for is said where the Rust side
 * calls it.
 */
#include <linux/delay.h>
#include <linux/fs.h>
#include <linux/gfp.h>
#include <linux/interrupt.h>
#include <linux/io.h>
#include <linux/ioport.h>
#include <linux/ktime.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/sched.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <linux/uaccess.h>
#include <linux/wait.h>
#include <asm/apic.h>
#include <asm/cpufeature.h>
#include <asm/desc.h>
#include <asm/irq_vectors.h>
#include <asm/sync_core.h>
#include <asm/tsc.h>

#include "shim.h"

unsigned long pvmm_irq_save(void)
{
	unsigned long flags;

	local_irq_save(flags);
	return flags;
}

void pvmm_irq_restore(unsigned long flags)
{
	local_irq_restore(flags);
}

bool pvmm_work_pending(void)
{
	return need_resched() || signal_pending(current);
}

bool pvmm_signal_pending(void)
{
	return signal_pending(current);
}

void pvmm_cond_resched(void)
{
	cond_resched();
}

void pvmm_kick(unsigned int cpu)
{
	if (cpu < nr_cpu_ids && cpu_online(cpu))
		arch_smp_send_reschedule(cpu);
}

unsigned int pvmm_current_cpu(void)
{
	return raw_smp_processor_id();
}

unsigned int pvmm_online_cpus(void)
{
	return num_online_cpus();
}

unsigned int pvmm_possible_cpus(void)
{
	return nr_cpu_ids;
}

void pvmm_on_each_cpu(void (*function)(void *), void *context)
{
	on_each_cpu(function, context, 1);
}

void pvmm_deliver_nmi(void)
{
	apic->send_IPI(raw_smp_processor_id(), NMI_VECTOR);
	iret_to_self();
}

void pvmm_fpu_begin(void)
{
	kernel_fpu_begin();
}

void pvmm_fpu_end(void)
{
	kernel_fpu_end();
}

void pvmm_tss_limit_is_invalid(void)
{
	/*
	 * Not invalidate_tss_limit(), which reloads the task register at once for
	 * a task that has an I/O bitmap, by a function that is exported to KVM
	 * only. The kernel does so before it returns to such a task
	 * (tss_update_io_bitmap), and there is no need for it before.
	 */
	this_cpu_write(__tss_limit_invalid, true);
}

unsigned int pvmm_tsc_khz(void)
{
	return tsc_khz;
}

bool pvmm_tsc_is_stable(void)
{
	return boot_cpu_has(X86_FEATURE_TSC) && !check_tsc_unstable();
}

void pvmm_delay_ns(u64 ns)
{
	while (ns > 1000000) {
		mdelay(1);
		ns -= 1000000;
	}
	udelay(DIV_ROUND_UP(ns, 1000));
}

void *pvmm_page_alloc(u64 *phys)
{
	void *page = (void *)get_zeroed_page(GFP_KERNEL_ACCOUNT);

	if (page)
		*phys = virt_to_phys(page);
	return page;
}

void pvmm_page_free(u64 phys)
{
	free_page((unsigned long)phys_to_virt(phys));
}

void *pvmm_page_at(u64 phys)
{
	return phys_to_virt(phys);
}

struct mm_struct *pvmm_mm_grab(void)
{
	if (current->mm)
		mmgrab(current->mm);
	return current->mm;
}

void pvmm_mm_drop(struct mm_struct *mm)
{
	mmdrop(mm);
}

bool pvmm_mm_is_current(struct mm_struct *mm)
{
	return current->mm == mm;
}

int pvmm_resolve(unsigned long address, bool write, u64 *pfn)
{
	struct page *page;
	int got;

	got = get_user_pages_fast(address, 1, write ? FOLL_WRITE : 0, &page);
	if (got != 1)
		return got < 0 ? got : -EFAULT;
	/*
	 * The guest's writes leave no mark in the process's page tables, where
	 * the page may be writable and clean, having been swapped in for a read.
	 * It can't become clean again without an invalidation.
	 */
	if (write && !PageDirty(page))
		set_page_dirty_lock(page);
	*pfn = page_to_pfn(page);
	put_page(page);
	return 0;
}

unsigned long pvmm_copy_in(void *to, u64 from, unsigned long count)
{
	return copy_from_user(to, (const void __user *)from, count);
}

unsigned long pvmm_copy_out(u64 to, const void *from, unsigned long count)
{
	return copy_to_user((void __user *)to, from, count);
}

wait_queue_head_t *pvmm_wait_queue_alloc(void)
{
	wait_queue_head_t *queue = kmalloc(sizeof(*queue), GFP_KERNEL_ACCOUNT);

	if (queue)
		init_waitqueue_head(queue);
	return queue;
}

void pvmm_wait_queue_free(wait_queue_head_t *queue)
{
	kfree(queue);
}

/* 0: ready, 1: the time was over, 2: a signal came */
int pvmm_wait(wait_queue_head_t *queue, s64 timeout_ns,
	      bool (*ready)(void *), void *context)
{
	long error;

	if (timeout_ns < 0)
		error = wait_event_interruptible(*queue, ready(context));
	else
		error = wait_event_interruptible_hrtimeout(*queue,
				ready(context), ns_to_ktime(timeout_ns));
	if (!error)
		return 0;
	return error == -ETIME ? 1 : 2;
}

void pvmm_wake(wait_queue_head_t *queue)
{
	wake_up(queue);
}

void *pvmm_claim_ports(u16 base, u16 count)
{
	return request_region(base, count, "pvmm");
}

void pvmm_release_ports(u16 base, u16 count)
{
	release_region(base, count);
}

u32 pvmm_port_in(u16 port, u8 bytes)
{
	switch (bytes) {
	case 1:
		return inb(port);
	case 2:
		return inw(port);
	default:
		return inl(port);
	}
}

void pvmm_port_out(u16 port, u8 bytes, u32 value)
{
	switch (bytes) {
	case 1:
		outb(value, port);
		break;
	case 2:
		outw(value, port);
		break;
	default:
		outl(value, port);
	}
}

int pvmm_claim_irq(unsigned int irq, irq_handler_t handler, void *context)
{
	return request_irq(irq, handler, 0, "pvmm", context);
}

void pvmm_release_irq(unsigned int irq, void *context)
{
	free_irq(irq, context);
}

/* Pages of the calling process for the self-test; the page behind them is unmapped. */
unsigned long pvmm_user_map(unsigned long pages)
{
	unsigned long at;

	at = vm_mmap(NULL, 0, (pages + 1) * PAGE_SIZE, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS, 0);
	if (IS_ERR_VALUE(at))
		return 0;
	vm_munmap(at + pages * PAGE_SIZE, PAGE_SIZE);
	return at;
}

void pvmm_user_unmap(unsigned long at, unsigned long pages)
{
	vm_munmap(at, pages * PAGE_SIZE);
}
