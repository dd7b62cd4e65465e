//! Operator classes: what each of them indexes and by which distance. An
//! operator class has one support function, which returns its [`OpClass`];
//! everything else asks that descriptor instead of looking up types.

use faiss_ivf::{Codec, FaissError, Metric};
use ivf_store::{Distance, Element};
use pgrx::{Internal, PgSqlErrorCode, pg_extern, pg_sys};

use super::report::Report;
use super::vector;

/// Number of the support function that returns the descriptor.
pub(super) const DESCRIPTOR_PROC: u16 = 1;
/// Number of the operator that an index scan orders by.
pub(super) const DISTANCE_STRATEGY: u16 = 1;

/// What an operator class indexes and by which distance.
pub(super) struct OpClass {
    /// The distance of its operator.
    pub distance: Distance,
    /// How vectors are stored.
    pub element: Element,
    /// The largest number of dimensions of an indexed column.
    pub max_dimensions: u32,
    /// Appends the components of a datum.
    read: unsafe fn(pg_sys::Datum, &mut Vec<f32>),
}

impl OpClass {
    const fn vector(distance: Distance) -> Self {
        Self {
            distance,
            element: Element::Float32,
            max_dimensions: 2000,
            read: vector::read_vector,
        }
    }

    const fn halfvec(distance: Distance) -> Self {
        Self {
            distance,
            element: Element::Float16,
            max_dimensions: 4000,
            read: vector::read_halfvec,
        }
    }

    /// The descriptor of the operator class of `index`.
    ///
    /// # Safety
    /// `index` must be an open index of this access method.
    pub unsafe fn of(index: pg_sys::Relation) -> &'static Self {
        // SAFETY: every operator class of this access method has this support
        // function, and each returns a pointer to a constant of this type.
        unsafe {
            let function = pg_sys::index_getprocinfo(index, 1, DESCRIPTOR_PROC);
            let descriptor = pg_sys::FunctionCall1Coll(
                function,
                pg_sys::InvalidOid,
                pg_sys::Datum::from(0usize),
            );
            &*descriptor.cast_mut_ptr::<Self>()
        }
    }

    /// By what FAISS compares vectors. Under the cosine distance vectors have
    /// length one, and their inner product is their cosine.
    pub fn metric(&self) -> Metric {
        match self.distance {
            Distance::L2 => Metric::L2,
            Distance::InnerProduct | Distance::Cosine => Metric::InnerProduct,
        }
    }

    /// The sort key of a FAISS distance: smaller is nearer in the total
    /// order. A NaN, into which a sum may overflow, is the last, as PostgreSQL
    /// sorts it.
    pub fn key(&self, distance: f32) -> f32 {
        match self.metric() {
            _ if distance.is_nan() => distance.abs(),
            Metric::L2 => distance,
            // The sum turns -0 into 0, so that equal distances have equal keys.
            Metric::InnerProduct => 0.0 - distance,
        }
    }

    /// How vectors are stored where they are stored as they are.
    pub fn codec(&self) -> Codec {
        match (self.element, self.distance) {
            (Element::Float32, _) => Codec::Flat,
            (Element::Float16, Distance::Cosine) => Codec::NormedHalf,
            (Element::Float16, _) => Codec::Half,
        }
    }

    /// Of vectors as they were read and as they are compared, those that flat codes store.
    /// Of 32-bit floats that is the direction; 16 bits could not hold it, so that the code
    /// has the vector and its length.
    pub fn stored<'a>(&self, read: &'a [f32], compared: &'a [f32]) -> &'a [f32] {
        match self.codec() {
            Codec::Flat => compared,
            Codec::Half | Codec::NormedHalf => read,
        }
    }

    /// Makes of vectors `(n, dimensions)` that were read what centroids and codes are
    /// compared with: directions, for the cosine.
    pub fn make_comparable(
        &self,
        dimensions: usize,
        vectors: &mut [f32],
    ) -> Result<(), FaissError> {
        match self.distance {
            Distance::Cosine => faiss_ivf::normalize(dimensions, vectors),
            Distance::L2 | Distance::InnerProduct => Ok(()),
        }
    }

    /// Appends the components of a datum to `out`. Returns false and appends nothing
    /// for a vector that is not indexed: a zero vector has no cosine.
    ///
    /// # Safety
    /// `datum` must be a value of the indexed type that is not NULL.
    pub unsafe fn read(&self, datum: pg_sys::Datum, dimensions: u32, out: &mut Vec<f32>) -> bool {
        // SAFETY: the caller's promise.
        unsafe { self.read_with(self.read, datum, dimensions, out) }
    }

    /// As [`Self::read`], for a datum of the type that `read` reads.
    ///
    /// # Safety
    /// `datum` must be a value of that type that is not NULL.
    pub unsafe fn read_with(
        &self,
        read: unsafe fn(pg_sys::Datum, &mut Vec<f32>),
        datum: pg_sys::Datum,
        dimensions: u32,
        out: &mut Vec<f32>,
    ) -> bool {
        let begin = out.len();
        // SAFETY: the caller's promise.
        unsafe { read(datum, out) };
        let found = out.len() - begin;
        if found != dimensions as usize {
            Report::new(
                PgSqlErrorCode::ERRCODE_DATA_EXCEPTION,
                format!("different vector dimensions {dimensions} and {found}"),
            )
            .raise();
        }
        if self.distance != Distance::Cosine {
            return true;
        }
        let is_zero = out[begin..].iter().all(|&component| component == 0.0);
        if is_zero {
            out.truncate(begin);
        }
        !is_zero
    }
}

static VECTOR_L2: OpClass = OpClass::vector(Distance::L2);
static VECTOR_IP: OpClass = OpClass::vector(Distance::InnerProduct);
static VECTOR_COSINE: OpClass = OpClass::vector(Distance::Cosine);
static HALFVEC_L2: OpClass = OpClass::halfvec(Distance::L2);
static HALFVEC_IP: OpClass = OpClass::halfvec(Distance::InnerProduct);
static HALFVEC_COSINE: OpClass = OpClass::halfvec(Distance::Cosine);

fn descriptor(opclass: &'static OpClass) -> Internal {
    Internal::from(Some(pg_sys::Datum::from(std::ptr::from_ref(opclass))))
}

#[pg_extern(immutable, strict, parallel_safe)]
fn faiss_ivf_vector_l2(_unused: Internal) -> Internal {
    descriptor(&VECTOR_L2)
}

#[pg_extern(immutable, strict, parallel_safe)]
fn faiss_ivf_vector_ip(_unused: Internal) -> Internal {
    descriptor(&VECTOR_IP)
}

#[pg_extern(immutable, strict, parallel_safe)]
fn faiss_ivf_vector_cosine(_unused: Internal) -> Internal {
    descriptor(&VECTOR_COSINE)
}

#[pg_extern(immutable, strict, parallel_safe)]
fn faiss_ivf_halfvec_l2(_unused: Internal) -> Internal {
    descriptor(&HALFVEC_L2)
}

#[pg_extern(immutable, strict, parallel_safe)]
fn faiss_ivf_halfvec_ip(_unused: Internal) -> Internal {
    descriptor(&HALFVEC_IP)
}

#[pg_extern(immutable, strict, parallel_safe)]
fn faiss_ivf_halfvec_cosine(_unused: Internal) -> Internal {
    descriptor(&HALFVEC_COSINE)
}
