//! Rows that were found and not yet returned, at three stages: with a bound by their
//! code, with a closer one by their refine code, and with their exact distance.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, TryReserveError};

use ivf_store::{Block, Tid};

/// Something that is no nearer than `key`.
#[derive(Clone, Copy)]
pub(super) struct Keyed<T> {
    pub key: f32,
    pub item: T,
}

impl<T: Ord> Ord for Keyed<T> {
    /// The greatest is the nearest, which a heap gives first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.key.total_cmp(&self.key)).then_with(|| other.item.cmp(&self.item))
    }
}

impl<T: Ord> PartialOrd for Keyed<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T: Ord> PartialEq for Keyed<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<T: Ord> Eq for Keyed<T> {}

/// Where the row of a candidate is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RowPlace {
    pub block: Block,
    pub index: u16,
    /// The list, by its place among those that the scan has ranked.
    pub list: u32,
}

/// So many of the nearest candidates of a queue are sorted at once.
const SORTED: usize = 128;
/// When so many may be among the nearest, the farther of them are put aside.
const CROWDED: usize = 4 * SORTED;

/// Candidates of which only the nearest are ever looked at: those are sorted, and the
/// others not before they are needed.
struct LazyQueue<T> {
    /// The nearest, the nearest of all at the end if they are sorted.
    near: Vec<Keyed<T>>,
    is_sorted: bool,
    /// The keys of those that are near.
    limit: f32,
    /// The others, in any order.
    far: Vec<Keyed<T>>,
}

impl<T> Default for LazyQueue<T> {
    fn default() -> Self {
        Self {
            near: Vec::new(),
            is_sorted: true,
            limit: f32::NAN,
            far: Vec::new(),
        }
    }
}

impl<T: Ord> LazyQueue<T> {
    /// Makes room for so many more, wherever they come to lie.
    fn reserve(&mut self, count: usize) -> Result<(), TryReserveError> {
        self.near.try_reserve(count + SORTED)?;
        self.far.try_reserve(count + self.near.len())
    }

    fn push(&mut self, candidate: Keyed<T>) {
        // A positive NaN is the greatest of keys.
        if candidate.key.total_cmp(&self.limit).is_gt() {
            self.far.push(candidate);
            return;
        }
        self.near.push(candidate);
        self.is_sorted = false;
        if self.near.len() >= CROWDED {
            self.put_aside();
        }
    }

    /// Leaves [`SORTED`] of the nearest.
    fn put_aside(&mut self) {
        let rest = self.near.len() - SORTED;
        // The nearest are the greatest, which go to the end.
        let (_, farthest, _) = self.near.select_nth_unstable(rest);
        self.limit = farthest.key;
        self.far.extend(self.near.drain(..rest));
    }

    /// Sorts what is near, after others came or if there is none.
    fn prepare(&mut self) {
        if self.near.is_empty() && !self.far.is_empty() {
            let rest = self.far.len().saturating_sub(SORTED);
            let (_, farthest, _) = self.far.select_nth_unstable(rest);
            self.limit = farthest.key;
            self.near.extend(self.far.drain(rest..));
            self.is_sorted = false;
        }
        if !self.is_sorted {
            self.near.sort_unstable();
            self.is_sorted = true;
        }
    }

    /// The nearest; [`Self::prepare`] comes before.
    fn peek(&self) -> Option<&Keyed<T>> {
        debug_assert!(self.is_sorted);
        self.near.last()
    }

    fn len(&self) -> usize {
        self.near.len() + self.far.len()
    }
}

/// The candidates of one stage: those that came many at once, and single ones.
struct Stage<T> {
    many: LazyQueue<T>,
    singles: BinaryHeap<Keyed<T>>,
}

impl<T: Ord> Default for Stage<T> {
    fn default() -> Self {
        Self {
            many: LazyQueue::default(),
            singles: BinaryHeap::new(),
        }
    }
}

impl<T: Ord> Stage<T> {
    fn peek(&mut self) -> Option<f32> {
        self.many.prepare();
        let (many, single) = (self.many.peek(), self.singles.peek());
        many.max(single).map(|candidate| candidate.key)
    }

    fn pop(&mut self) -> Option<Keyed<T>> {
        self.many.prepare();
        if self.many.peek() > self.singles.peek() {
            self.many.near.pop()
        } else {
            self.singles.pop()
        }
    }
}

/// Rows by stage.
#[derive(Default)]
pub(super) struct Candidates {
    coded: Stage<RowPlace>,
    refined: Stage<Tid>,
    exact: Stage<Tid>,
}

/// The nearest candidate, taken out.
pub(super) enum Nearest {
    /// It needs its row page.
    Coded(RowPlace),
    /// It needs its vector.
    Refined(Tid),
    /// There is none nearer.
    Exact(Keyed<Tid>),
}

impl Candidates {
    /// Makes room for so many candidates of a list.
    pub fn reserve(&mut self, count: usize) -> Result<(), TryReserveError> {
        self.coded.many.reserve(count)?;
        self.refined.many.reserve(count)?;
        self.exact.many.reserve(count)
    }

    /// Bytes of the candidates that lists had.
    pub fn bytes(&self) -> usize {
        self.coded.many.len() * size_of::<Keyed<RowPlace>>()
            + (self.refined.many.len() + self.exact.many.len()) * size_of::<Keyed<Tid>>()
    }

    /// Takes one of many of a list.
    pub fn push_coded(&mut self, candidate: Keyed<RowPlace>) {
        self.coded.many.push(candidate);
    }

    /// Takes one of many of a list.
    pub fn push_refined(&mut self, candidate: Keyed<Tid>) {
        self.refined.many.push(candidate);
    }

    /// Takes one of many of a list.
    pub fn push_exact(&mut self, candidate: Keyed<Tid>) {
        self.exact.many.push(candidate);
    }

    /// Takes one whose refine code was read.
    pub fn add_refined(&mut self, candidate: Keyed<Tid>) {
        self.refined.singles.push(candidate);
    }

    /// Takes one whose vector was read.
    pub fn add_exact(&mut self, candidate: Keyed<Tid>) {
        self.exact.singles.push(candidate);
    }

    /// Takes the candidate that may be the nearest; of equally near ones that which is
    /// known best.
    pub fn pop(&mut self) -> Option<Nearest> {
        let (coded, refined) = (self.coded.peek(), self.refined.peek());
        let exact = self.exact.peek();
        let no_later = |a: f32, b: Option<f32>| b.is_none_or(|b| a.total_cmp(&b).is_le());
        match (exact, refined) {
            (Some(key), _) if no_later(key, refined) && no_later(key, coded) => {
                self.exact.pop().map(Nearest::Exact)
            }
            (_, Some(key)) if no_later(key, coded) => {
                let candidate = self.refined.pop()?;
                Some(Nearest::Refined(candidate.item))
            }
            _ => {
                let candidate = self.coded.pop()?;
                Some(Nearest::Coded(candidate.item))
            }
        }
    }
}
