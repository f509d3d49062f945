//! Dispatches: which variant, and what must hold before one is appended.

use super::Builder;
use crate::error::{Error, Result};
use crate::program::{Dispatch, Operand, Role, Tensor, shared};
use crate::tuning::{self, Case, Choice};
use crate::variant::{Binding, GRID_FOLD, Load, Variant};

/// What a kernel asks a builder to append.
pub(crate) struct Launch<'a, P> {
    pub(crate) label: &'a str,
    pub(crate) variant: Variant,
    pub(crate) workgroups: u64,
    pub(crate) params: P,
    /// One for each of the variant's bindings, in their order.
    pub(crate) operands: &'a [Option<Tensor>],
    pub(crate) flops: u64,
    /// Bytes moved, where it is not every operand once.
    pub(crate) bytes: Option<u64>,
}

/// The most threads of a workgroup, in kernels that number theirs across workgroups.
const THREADS: u32 = 128;

impl Builder {
    /// The variant of the next dispatch, which is about `case`: a pin of the caller's, else what was measured, else the table's.
    pub(crate) fn choice(&mut self, case: &Case) -> Choice {
        self.case = Some(*case);
        let (class, options) = (self.kernels.class(), self.kernels.options());
        let measured = || options.tuned.as_ref()?.choice(case, class, options.batch_invariant);
        let pinned = tuning::pinned(case, class, &options.pinned);
        pinned.or_else(measured).unwrap_or_else(|| tuning::best(case, class))
    }

    /// The same without a look at what was measured, and no dispatch need follow.
    pub(crate) fn unmeasured_choice(&self, case: &Case) -> Choice {
        let (class, options) = (self.kernels.class(), self.kernels.options());
        tuning::pinned(case, class, &options.pinned).unwrap_or_else(|| tuning::best(case, class))
    }

    /// Appends a dispatch that ends what the one before it began: the two are one choice.
    pub(crate) fn launch_second<P: bytemuck::Pod>(&mut self, launch: Launch<'_, P>) -> Result<()> {
        self.launch(launch)?;
        self.dispatches.iter_mut().next_back().into_iter().for_each(|last| last.second = true);
        Ok(())
    }

    /// Appends a dispatch.
    pub(crate) fn launch<P: bytemuck::Pod>(&mut self, launch: Launch<'_, P>) -> Result<()> {
        let workgroups = launch.workgroups;
        self.launch_in_forms(launch, workgroups)
    }

    /// Appends a dispatch that takes `unaligned` workgroups where its views are not aligned to groups of four, and another class
    /// stands in for the variant's.
    pub(crate) fn launch_in_forms<P: bytemuck::Pod>(&mut self, launch: Launch<'_, P>, unaligned: u64) -> Result<()> {
        let Launch { label, variant, workgroups, mut params, operands, flops, bytes } = launch;
        let operands: Vec<Operand> =
            variant.bindings().zip(operands).map(|(binding, &tensor)| Operand { binding, tensor }).collect();
        debug_assert_eq!(operands.len(), variant.storage_buffers(), "{label}: one operand a binding");
        debug_assert_eq!(size_of::<P>(), variant.kernel.params_size, "{label}: the kernel's parameters");
        for operand in &operands {
            let Some(tensor) = operand.tensor else { continue };
            let step = self.kernels.tensor_step(self.element(tensor));
            operand.binding.write_offset(bytemuck::bytes_of_mut(&mut params), tensor.offset % step);
            self.check_binding(label, tensor, operand.binding)?;
            let whole =
                operand.binding.load == Load::Single || !variant.storage.in_fours() || tensor.extent().is_multiple_of(4);
            debug_assert!(whole, "{label}: the last group of {} is part of its binding", self.tensor_name(tensor));
            if operand.binding.writes && !tensor.layout.is_disjoint() {
                let expected = format!("no two elements in one place, as {label} writes it");
                return Err(Error::shape(self.tensor_name(tensor), expected, tensor.layout));
            }
        }
        if let Some((a, b)) = shared(&operands, |t| Some(t.slot)) {
            return Err(Error::Alias {
                dispatch: label.to_owned(),
                written: self.tensor_name(a).to_owned(),
                other: self.tensor_name(b).to_owned(),
            });
        }
        self.check_roles(label, &operands)?;
        // Threads are numbered in 32 bits; the folded grid holds more.
        let allowed = (1 << 32) / u64::from(THREADS);
        if workgroups.max(unaligned) > allowed {
            let expected = format!("at most {allowed}, as threads are numbered in 32 bits");
            return Err(Error::option(format!("workgroups of {label}"), expected, workgroups.max(unaligned)));
        }
        let fold = u64::from(GRID_FOLD);
        let [grid, unaligned_grid] = [workgroups, unaligned].map(|n| [n.min(fold) as u32, n.div_ceil(fold) as u32, 1]);
        let all = || {
            operands
                .iter()
                .filter_map(|o| o.tensor)
                .map(|t| self.element(t).size() * t.layout.extent().min(t.layout.len() as u64))
                .sum()
        };
        let bytes = bytes.unwrap_or_else(all);
        let params = self.place(bytemuck::bytes_of(&params));
        let number = self.dispatches.len();
        for operand in &operands {
            let Some(slot) = operand.slot().map(|slot| &mut self.slots[slot]) else { continue };
            match operand.binding.writes {
                true => slot.first_write = slot.first_write.or(Some(number)),
                false => slot.last_read = Some(number),
            }
        }
        self.dispatches.push(Dispatch {
            label: label.to_owned(),
            variant,
            case: self.case.take(),
            second: false,
            grid,
            unaligned_grid,
            flops,
            bytes,
            params,
            operands,
        });
        Ok(())
    }

    fn check_binding(&self, label: &str, tensor: Tensor, binding: &Binding) -> Result<()> {
        let element = self.element(tensor);
        let needed = (tensor.offset % self.kernels.tensor_step(element) + tensor.extent()) * element.size();
        let allowed = self.kernels.limits().max_storage_buffer_binding_size;
        if needed > allowed {
            let what = self.part_name(label, binding.name, tensor);
            return Err(Error::Limit { what, limit: "max_storage_buffer_binding_size", needed, allowed });
        }
        Ok(())
    }

    /// Refuses a dispatch that writes what the caller only lends, or that reads scratch or an output before anything stands in it.
    fn check_roles(&self, label: &str, operands: &[Operand]) -> Result<()> {
        for operand in operands {
            let Some(slot) = operand.slot().map(|slot| &self.slots[slot]) else { continue };
            match slot.role {
                Role::Input | Role::Weight if operand.binding.writes => {
                    let expected = format!("an output, state or scratch, as {label} writes it");
                    return Err(Error::option(&slot.name, expected, format!("{:?}", slot.role)));
                }
                Role::Scratch | Role::Output if !operand.binding.writes && slot.first_write.is_none() => {
                    let expected = format!("a dispatch before {label} that writes it");
                    return Err(Error::option(&slot.name, expected, "none"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Puts parameters into the arena; equal ones share a place.
    fn place(&mut self, bytes: &[u8]) -> std::ops::Range<usize> {
        let step = self.kernels.parameter_step();
        let arena = &mut self.arena;
        let start = *self.arena_parts.entry(bytes.to_vec()).or_insert_with(|| {
            let start = arena.len().next_multiple_of(step);
            arena.resize(start, 0);
            arena.extend_from_slice(bytes);
            arena.resize(arena.len().next_multiple_of(16), 0);
            start
        });
        start..start + bytes.len().next_multiple_of(16)
    }
}
