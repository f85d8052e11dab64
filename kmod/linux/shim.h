/* SPDX-License-Identifier: GPL-2.0 */
#ifndef PVMM_SHIM_H
#define PVMM_SHIM_H

#include <linux/interrupt.h>
#include <linux/types.h>
#include <linux/wait.h>

struct mm_struct;

unsigned long pvmm_irq_save(void);
void pvmm_irq_restore(unsigned long flags);
bool pvmm_work_pending(void);
bool pvmm_signal_pending(void);
void pvmm_cond_resched(void);
void pvmm_kick(unsigned int cpu);
unsigned int pvmm_current_cpu(void);
unsigned int pvmm_online_cpus(void);
unsigned int pvmm_possible_cpus(void);
void pvmm_on_each_cpu(void (*function)(void *), void *context);
void pvmm_deliver_nmi(void);
void pvmm_fpu_begin(void);
void pvmm_fpu_end(void);
void pvmm_tss_limit_is_invalid(void);
unsigned int pvmm_tsc_khz(void);
bool pvmm_tsc_is_stable(void);
void pvmm_delay_ns(u64 ns);
void *pvmm_page_alloc(u64 *phys);
void pvmm_page_free(u64 phys);
void *pvmm_page_at(u64 phys);
struct mm_struct *pvmm_mm_grab(void);
void pvmm_mm_drop(struct mm_struct *mm);
bool pvmm_mm_is_current(struct mm_struct *mm);
int pvmm_resolve(unsigned long address, bool write, u64 *pfn);
unsigned long pvmm_copy_in(void *to, u64 from, unsigned long count);
unsigned long pvmm_copy_out(u64 to, const void *from, unsigned long count);
wait_queue_head_t *pvmm_wait_queue_alloc(void);
void pvmm_wait_queue_free(wait_queue_head_t *queue);
int pvmm_wait(wait_queue_head_t *queue, s64 timeout_ns,
	      bool (*ready)(void *), void *context);
void pvmm_wake(wait_queue_head_t *queue);
void *pvmm_claim_ports(u16 base, u16 count);
void pvmm_release_ports(u16 base, u16 count);
u32 pvmm_port_in(u16 port, u8 bytes);
void pvmm_port_out(u16 port, u8 bytes, u32 value);
int pvmm_claim_irq(unsigned int irq, irq_handler_t handler, void *context);
void pvmm_release_irq(unsigned int irq, void *context);
unsigned long pvmm_user_map(unsigned long pages);
void pvmm_user_unmap(unsigned long at, unsigned long pages);

#endif
