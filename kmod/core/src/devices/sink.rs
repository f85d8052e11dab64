// SPDX-License-Identifier: GPL-2.0
//! Where capture puts records and a plan its steps: storage of the caller, with a bound.
#![forbid(unsafe_code)]

/// There is no room for another item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// A list in storage of the caller, which knows the limits and where there is room for so much.
#[derive(Debug)]
pub struct Sink<'a, T> {
    storage: &'a mut [T],
    len: usize,
}

impl<'a, T> Sink<'a, T> {
    /// An empty list that can take as many items as `storage` has.
    pub fn new(storage: &'a mut [T]) -> Self {
        Self { storage, len: 0 }
    }

    /// Puts an item behind the others.
    ///
    /// # Errors
    ///
    /// [`Full`] if there is no room; then nothing has changed.
    pub fn push(&mut self, item: T) -> Result<(), Full> {
        let place = self.storage.get_mut(self.len).ok_or(Full)?;
        *place = item;
        self.len += 1;
        Ok(())
    }

    /// How many more items there is room for.
    pub fn room(&self) -> usize {
        self.storage.len() - self.len
    }

    /// Number of items.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no item.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The items.
    pub fn as_slice(&self) -> &[T] {
        self.storage.get(..self.len).unwrap_or(&[])
    }
}
