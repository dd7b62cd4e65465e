//! `sight_index_stats`: what an index holds and how its lists are.

use ivf_store::{
    Block, Extent, ListLayout, ListPage, Meta, PAGE_SIZE, PageStore, Place, RECALL_ROWS,
    RecallCurve, RowPage, Tid,
};
use pgrx::datum::TimestampWithTimeZone;
use pgrx::iter::TableIterator;
use pgrx::{JsonB, check_for_interrupts, name, pg_extern, pg_sys};
use serde_json::json;

use super::admin::{Access, OpenIndex, Visitor, visit_pages};
use super::options;
use super::probes::Probes;
use super::report::OrRaise;
use super::vacuum::item_pointer;

/// An index whose table has grown so many times beyond what its number of lists was
/// chosen for wants to be built anew.
const GROWTH: u32 = 4;

/// Counts over all lists.
struct Counts<'a> {
    open: &'a OpenIndex,
    layout: ListLayout,
    /// Entries of each list.
    entries: Vec<u64>,
    /// Entries of rows that no transaction can see any more.
    dead: u64,
    list_pages: u64,
    row_pages: u64,
    /// Entries for which pages have room.
    free: u64,
    /// The page that was seen last: its list, its rows, its row pages and how many slots
    /// of them are in use.
    list: u32,
    tids: Vec<Tid>,
    rows: Vec<(Block, usize)>,
}

impl Visitor for Counts<'_> {
    fn page(&mut self, list: u32, page: &ListPage<'_>) {
        self.list = list;
        self.list_pages += 1;
        self.free += self.layout.capacity() as u64;
        if self.layout.row_capacity() > 0 {
            self.rows.extend(page.row_pages());
            return;
        }
        let places = (0..page.len()).filter_map(|entry| page.place(entry));
        self.tids.extend(places.filter_map(|place| match place {
            Place::Tid(tid) => Some(tid),
            Place::Row { .. } => None,
        }));
    }

    fn unlocked(&mut self) {
        let store = self.open.store();
        self.row_pages += self.rows.len() as u64;
        for (block, used) in self.rows.drain(..) {
            // SAFETY: the index is open.
            unsafe {
                let bytes = store.read(block).or_raise(self.open.index);
                let page = RowPage::parse(&bytes, block, self.layout, self.list);
                let page = page.or_raise(self.open.index);
                self.tids
                    .extend((0..used).filter_map(|index| page.tid(index)));
            }
        }
        self.entries[self.list as usize] += self.tids.len() as u64;
        self.free -= self.tids.len() as u64;
        self.dead += count_dead(self.open, &mut self.tids);
    }
}

impl<'a> Counts<'a> {
    fn of(open: &'a OpenIndex, meta: &Meta) -> Self {
        let mut counts = Self {
            open,
            layout: meta.layout,
            entries: vec![0; meta.lists as usize],
            dead: 0,
            list_pages: 0,
            row_pages: 0,
            free: 0,
            list: 0,
            tids: Vec::new(),
            rows: Vec::new(),
        };
        visit_pages(open, meta, &mut counts);
        counts
    }

    fn total(&self) -> u64 {
        self.entries.iter().sum()
    }

    /// FAISS's imbalance factor: 1 where all lists are equally long, `lists` where one
    /// has everything; how much more a search scans than it would in equal lists.
    fn imbalance(&self) -> f64 {
        let total = self.total() as f64;
        if total == 0.0 {
            return 1.0;
        }
        let squares: f64 = self.entries.iter().map(|&n| n as f64 * n as f64).sum();
        squares * self.entries.len() as f64 / (total * total)
    }
}

/// A share to four digits behind the point, which is more than was measured.
pub(super) fn rounded(share: f32) -> f64 {
    (f64::from(share) * 1e4).round() / 1e4
}

/// How many of these rows are dead to all transactions; empties `tids`.
fn count_dead(open: &OpenIndex, tids: &mut Vec<Tid>) -> u64 {
    let mut count = 0;
    for tid in tids.drain(..) {
        check_for_interrupts!();
        let (mut pointer, mut all_dead) = (item_pointer(tid), false);
        // SAFETY: the table is open, and a function runs under an active snapshot.
        unsafe {
            pg_sys::table_index_fetch_tuple_check(
                open.heap,
                &mut pointer,
                pg_sys::GetActiveSnapshot(),
                &mut all_dead,
            );
        }
        count += u64::from(all_dead);
    }
    count
}

/// `sight_index_stats(index regclass)`: one row about an index.
#[pg_extern(sql = "
CREATE FUNCTION sight_index_stats(
    index regclass,
    OUT factory text, OUT lists integer, OUT entries bigint, OUT dead bigint, OUT empty_lists integer,
    OUT longest_list bigint, OUT imbalance double precision,
    OUT total_bytes bigint, OUT centroid_bytes bigint, OUT directory_bytes bigint,
    OUT state_bytes bigint, OUT list_bytes bigint, OUT row_bytes bigint, OUT free_entries bigint,
    OUT training_rows bigint, OUT trained_at timestamptz, OUT wants_reindex boolean,
    OUT target_recall double precision, OUT nprobe integer, OUT mean_lists double precision,
    OUT expected_recall double precision, OUT recall_curve jsonb
) RETURNS SETOF record
    LANGUAGE c VOLATILE STRICT ROWS 1 PARALLEL RESTRICTED AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
")]
#[expect(clippy::type_complexity, reason = "a row of many columns")]
fn sight_index_stats(
    index: pg_sys::Oid,
) -> TableIterator<
    'static,
    (
        name!(factory, String),
        name!(lists, i32),
        name!(entries, i64),
        name!(dead, i64),
        name!(empty_lists, i32),
        name!(longest_list, i64),
        name!(imbalance, f64),
        name!(total_bytes, i64),
        name!(centroid_bytes, i64),
        name!(directory_bytes, i64),
        name!(state_bytes, i64),
        name!(list_bytes, i64),
        name!(row_bytes, i64),
        name!(free_entries, i64),
        name!(training_rows, i64),
        name!(trained_at, Option<TimestampWithTimeZone>),
        name!(wants_reindex, bool),
        name!(target_recall, f64),
        name!(nprobe, i32),
        name!(mean_lists, f64),
        name!(expected_recall, f64),
        name!(recall_curve, JsonB),
    ),
> {
    let open = OpenIndex::open(index, Access::Look);
    let store = open.store();
    // SAFETY: the index is open for all that follows.
    let (meta, curve, probes, target, wanted, counts) = unsafe {
        let meta = Meta::read(&store).or_raise(open.index);
        let curve = RecallCurve::read(&store, &meta).or_raise(open.index);
        let probes = Probes::choose(open.index, &curve, &meta);
        let target = options::target_recall(open.index);
        let counts = Counts::of(&open, &meta);
        // There are never more lists than rows to learn from.
        let rows = u32::try_from(counts.total()).unwrap_or(u32::MAX);
        let wanted = options::lists(open.index, f64::from(rows)).min(rows);
        (meta, curve, probes, target, wanted, counts)
    };
    let pages = |pages: u64| (pages * PAGE_SIZE as u64) as i64;
    let extent = |extent: &Extent| pages(extent.blocks.into());
    let points = curve.points().iter().map(|point| {
        let mut object = json!({"nprobe": point.nprobe, "mean_lists": rounded(point.lists)});
        for (rows, recall) in RECALL_ROWS.iter().zip(point.recall) {
            object[format!("recall_at_{rows}")] = json!(rounded(recall.mean));
            object[format!("standard_error_at_{rows}")] = json!(rounded(recall.error));
        }
        object
    });
    let row = (
        meta.factory.clone(),
        meta.lists as i32,
        counts.total() as i64,
        counts.dead as i64,
        counts
            .entries
            .iter()
            .filter(|entries| **entries == 0)
            .count() as i32,
        counts.entries.iter().max().copied().unwrap_or(0) as i64,
        counts.imbalance(),
        pages(store.block_count().into()),
        extent(&meta.centroids),
        extent(&meta.directory),
        extent(&meta.state),
        pages(counts.list_pages),
        pages(counts.row_pages),
        counts.free as i64,
        meta.training_rows as i64,
        // The time of a single list says nothing.
        (meta.lists > 1)
            .then(|| TimestampWithTimeZone::try_from(meta.trained_at).ok())
            .flatten(),
        wanted > 1
            && wanted
                >= meta
                    .lists
                    .saturating_mul(if meta.lists == 1 { 2 } else { GROWTH }),
        target,
        probes.first as i32,
        rounded(probes.mean as f32),
        rounded(curve.recall(probes.first)),
        JsonB(json!(points.collect::<Vec<_>>())),
    );
    TableIterator::new([row])
}
