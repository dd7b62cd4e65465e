//! The lists of an index in the order of their nearness to a query. Only the nearest are
//! ever sorted, and where it is worth it only their keys are computed from all that is
//! known of their centroids.

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
    /// The key is an estimate.
    is_estimate: bool,
}

pub(super) struct Ranking {
    /// All lists.
    lists: Vec<RankedList>,
    /// So many of them, the nearest, are in order at the front.
    sorted: usize,
    /// By how much estimates may be off.
    slack: f32,
}

impl Ranking {
    /// Without a comparison all lists are equally near.
    pub fn new(trained: &Trained, comparison: Option<&Comparison>) -> Result<Self, FaissError> {
        let coded =
            (comparison.map(|comparison| &comparison.coded)).filter(|_| trained.first.len() > 1);
        let coarse = coded.and_then(|coded| {
            let centroids = trained.lists.coarse_for_rank()?;
            coded.rank_coarsely(centroids)
        });
        let is_estimate = coarse.is_some();
        let (keys, slack) = match (coarse, coded) {
            (Some(estimates), _) => estimates,
            (None, Some(coded)) => (coded.rank(&trained.lists.centroids)?, 0.0),
            (None, None) => (vec![0.0; trained.first.len()], 0.0),
        };
        let lists = (0..).zip(&trained.first).zip(keys);
        let lists = lists.map(|((list, &first), key)| RankedList {
            key,
            list,
            first,
            is_estimate,
        });
        Ok(Self {
            lists: lists.collect(),
            sorted: 0,
            slack,
        })
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

    /// Brings the nearest `count` lists into order, by their true keys. `comparison` and
    /// `trained` are those that this was made of.
    ///
    /// # Errors
    /// `InvalidArgument` if they are not.
    pub fn sort(
        &mut self,
        count: usize,
        comparison: Option<&Comparison>,
        trained: &Trained,
    ) -> Result<(), FaissError> {
        let count = count.min(self.lists.len());
        if count <= self.sorted {
            return Ok(());
        }
        let by_key = |a: &RankedList, b: &RankedList| a.key.total_cmp(&b.key);
        let (rest, wanted) = (&mut self.lists[self.sorted..], count - self.sorted);
        if wanted < rest.len() {
            rest.select_nth_unstable_by(wanted - 1, by_key);
        }
        let mut known = wanted;
        if let Some(comparison) = comparison
            && self.slack > 0.0
        {
            known = settle(rest, wanted, self.slack, comparison, trained)?;
            if wanted < known {
                rest[..known].select_nth_unstable_by(wanted - 1, by_key);
            }
        }
        debug_assert!(wanted <= known);
        rest[..wanted].sort_unstable_by(by_key);
        self.sorted = count;
        Ok(())
    }

    /// How many of the nearest lists have a spread of at most `reach`, likely about
    /// `likely`. `None` if there is no gap between lists because keys are no numbers.
    ///
    /// # Errors
    /// As for [`Self::sort`].
    pub fn within(
        &mut self,
        reach: f32,
        likely: usize,
        comparison: &Comparison,
        trained: &Trained,
    ) -> Result<Option<usize>, FaissError> {
        self.sort(likely, Some(comparison), trained)?;
        let Some(nearest) = self.lists.first().map(|list| list.key) else {
            return Ok(None);
        };
        let mut place = 0;
        while place < self.lists.len() {
            if place == self.sorted {
                self.sort(2 * place, Some(comparison), trained)?;
            }
            let gap = comparison.coded.gap(nearest, self.lists[place].key);
            let spread = spread(place as u32 + 1, gap);
            if !spread.is_finite() {
                return Ok(None);
            }
            if spread > reach {
                break;
            }
            place += 1;
        }
        Ok(Some(place))
    }
}

/// Computes the keys of those that may be among the nearest `wanted`, of which the first
/// `wanted` are the nearest by estimates that are off by `slack` at most. Brings them to
/// the front and returns how many they are.
fn settle(
    lists: &mut [RankedList],
    wanted: usize,
    slack: f32,
    comparison: &Comparison,
    trained: &Trained,
) -> Result<usize, FaissError> {
    // So many have a key of at most this and a slack, and what is farther by more than that
    // and its own slack is not among them.
    let farthest = lists[wanted - 1].key + 2.0 * slack;
    let mut known = wanted;
    for place in wanted..lists.len() {
        if lists[place].key <= farthest {
            lists.swap(known, place);
            known += 1;
        }
    }
    for ranked in lists[..known].iter_mut().filter(|list| list.is_estimate) {
        let centroid = trained.lists.centroid(ranked.list);
        ranked.key = comparison.coded.key(centroid)?;
        ranked.is_estimate = false;
    }
    Ok(known)
}
