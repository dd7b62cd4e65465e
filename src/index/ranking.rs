//! The lists of an index in the order of their nearness to a query. Only the nearest are
//! ever sorted.

use faiss_ivf::FaissError;
use ivf_store::{Block, spread};

use super::list_reading::Comparison;
use super::trained::Trained;

/// A list, and how near its centroid is to the query.
#[derive(Clone, Copy)]
pub(super) struct RankedList {
    pub key: f32,
    pub list: u32,
    pub first: Block,
}

pub(super) struct Ranking {
    /// All lists.
    lists: Vec<RankedList>,
    /// So many of them, the nearest, are in order at the front.
    sorted: usize,
}

impl Ranking {
    /// Without a comparison all lists are equally near.
    pub fn new(trained: &Trained, comparison: Option<&Comparison>) -> Result<Self, FaissError> {
        let mut keys = vec![0.0; trained.first.len()];
        if let Some(comparison) = comparison
            && keys.len() > 1
        {
            keys = comparison.coded.rank(&trained.lists.centroids)?;
        }
        let lists = (0..)
            .zip(&trained.first)
            .zip(keys)
            .map(|((list, &first), key)| RankedList { key, list, first })
            .collect();
        Ok(Self { lists, sorted: 0 })
    }

    /// How many lists there are.
    pub fn len(&self) -> usize {
        self.lists.len()
    }

    /// The list at `place`, from 0; [`Self::sort`] comes before.
    pub fn get(&self, place: usize) -> RankedList {
        debug_assert!(place < self.sorted);
        self.lists[place]
    }

    /// Brings the nearest `count` lists into order.
    pub fn sort(&mut self, count: usize) {
        let count = count.min(self.lists.len());
        if count <= self.sorted {
            return;
        }
        let by_key = |a: &RankedList, b: &RankedList| a.key.total_cmp(&b.key);
        let (rest, wanted) = (&mut self.lists[self.sorted..], count - self.sorted);
        if wanted < rest.len() {
            rest.select_nth_unstable_by(wanted - 1, by_key);
        }
        rest[..wanted].sort_unstable_by(by_key);
        self.sorted = count;
    }

    /// How many of the nearest lists have a spread of at most `reach`, likely about
    /// `likely`. `gap` is that between the keys of the nearest list and another. `None`
    /// if there is no such gap because keys are no numbers.
    pub fn within(
        &mut self,
        reach: f32,
        likely: usize,
        gap: impl Fn(f32, f32) -> f32,
    ) -> Option<usize> {
        self.sort(likely);
        let nearest = self.lists.first()?.key;
        let mut place = 0;
        while place < self.lists.len() {
            if place == self.sorted {
                self.sort(2 * place);
            }
            let spread = spread(place as u32 + 1, gap(nearest, self.lists[place].key));
            if !spread.is_finite() {
                return None;
            }
            if spread > reach {
                break;
            }
            place += 1;
        }
        Some(place)
    }
}
