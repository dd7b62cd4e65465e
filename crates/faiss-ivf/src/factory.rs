//! FAISS's index factory strings, as far as they name inverted lists.

use std::fmt;
use std::str::FromStr;

use crate::quantizer::QuantizerKind;
use crate::transform::TransformKind;

/// What is understood, for messages.
const UNDERSTOOD: &str = "A factory string is [RR,|PCA<dim>,|OPQ<m>[_<dim>],]IVF[<lists>],<code>[,<refine>], \
with a code of Flat, SQ8, SQ4, SQfp16, PQ<m>, PQ<m>x4fs and RaBitQ, \
and Refine(SQ8), Refine(SQfp16), Refine(Flat) or RFlat behind; Flat has nothing before IVF and nothing behind.";

/// Inverted lists with what is before and behind them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Factory {
    /// The map before the lists.
    pub transform: Option<TransformKind>,
    /// Number of lists, if it is given.
    pub lists: Option<u32>,
    /// How the entries of the lists are coded.
    pub code: Code,
    /// What they have beside that.
    pub refine: Option<Code>,
}

/// How a vector is coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// As it is.
    Flat,
    /// By a code that loses something.
    Lossy(QuantizerKind),
}

impl Factory {
    /// Vectors as they are.
    pub const FLAT: Self = Self {
        transform: None,
        lists: None,
        code: Code::Flat,
        refine: None,
    };
    /// What serves best where nobody says it: by the benchmarks, no code takes less time for a
    /// search of the usual recall, and it has a quarter of the size of flat codes with copies.
    pub const DEFAULT: Self = Self {
        transform: Some(TransformKind::RandomRotation),
        lists: None,
        code: Code::Lossy(QuantizerKind::Signs),
        refine: Some(Code::Lossy(QuantizerKind::Sq8)),
    };
    /// The same for vectors of which 32 signs do not fit into a page.
    pub const DEFAULT_FOR_LONG: Self = Self {
        transform: None,
        lists: None,
        code: Code::Lossy(QuantizerKind::Sq8),
        refine: None,
    };
}

impl Factory {
    /// Where vectors as they are are meant: copies of them in 8 bits before them, of which
    /// a search reads a quarter of the bytes, and by bounds that are certain only the
    /// vectors of the nearest ([`Coding`](crate::Coding)).
    #[must_use]
    pub fn with_copies(self) -> Self {
        match self.code {
            Code::Flat => Self {
                code: Code::Lossy(QuantizerKind::Sq8),
                refine: Some(Code::Flat),
                ..self
            },
            Code::Lossy(_) => self,
        }
    }

    /// Whether what a search finds in the lists that it reads is to be what it would find
    /// there by the vectors themselves.
    pub(crate) fn is_certain(&self) -> bool {
        *self
            == Self {
                lists: self.lists,
                ..Self::FLAT.with_copies()
            }
    }
}

impl Code {
    /// The encoding, if it loses something.
    pub const fn quantizer(self) -> Option<QuantizerKind> {
        match self {
            Self::Flat => None,
            Self::Lossy(kind) => Some(kind),
        }
    }
}

/// Why a string is no factory string of inverted lists.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid factory string \"{string}\": {reason}")]
pub struct FactoryError {
    string: String,
    reason: String,
}

impl FactoryError {
    /// What factory strings look like.
    pub const fn hint(&self) -> &'static str {
        UNDERSTOOD
    }
}

impl FromStr for Factory {
    type Err = FactoryError;

    fn from_str(string: &str) -> Result<Self, FactoryError> {
        parse(string).map_err(|reason| FactoryError {
            string: string.to_owned(),
            reason,
        })
    }
}

/// The factory string without the number of lists.
impl fmt::Display for Factory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.transform {
            None => {}
            Some(TransformKind::RandomRotation) => f.write_str("RR,")?,
            Some(TransformKind::Pca { out }) => write!(f, "PCA{out},")?,
            Some(TransformKind::Opq { m, out: None }) => write!(f, "OPQ{m},")?,
            Some(TransformKind::Opq { m, out: Some(out) }) => write!(f, "OPQ{m}_{out},")?,
        }
        write!(f, "IVF,{}", self.code)?;
        match self.refine {
            None => Ok(()),
            Some(Code::Flat) => f.write_str(",RFlat"),
            Some(code) => write!(f, ",Refine({code})"),
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flat => f.write_str("Flat"),
            Self::Lossy(QuantizerKind::Sq8) => f.write_str("SQ8"),
            Self::Lossy(QuantizerKind::Sq4) => f.write_str("SQ4"),
            Self::Lossy(QuantizerKind::SqFp16) => f.write_str("SQfp16"),
            Self::Lossy(QuantizerKind::Pq { m }) => write!(f, "PQ{m}"),
            Self::Lossy(QuantizerKind::Pq4 { m }) => write!(f, "PQ{m}x4fs"),
            Self::Lossy(QuantizerKind::Signs) => f.write_str("RaBitQ"),
        }
    }
}

fn parse(string: &str) -> Result<Factory, String> {
    let mut parts = string.split(',').map(str::trim).peekable();
    let mut factory = Factory {
        transform: None,
        lists: None,
        code: Code::Flat,
        refine: None,
    };
    if let Some(part) = parts.next_if(|part| !part.starts_with("IVF")) {
        factory.transform = Some(transform(part)?);
    }
    let lists = parts.next().ok_or("there is no IVF")?;
    let number = lists
        .strip_prefix("IVF")
        .ok_or_else(|| format!("\"{lists}\" stands where IVF is expected"))?;
    if !number.is_empty() {
        factory.lists = Some(count(number, lists)?);
    }
    let name = parts.next().ok_or("there is no code behind IVF")?;
    factory.code = code(name)?;
    if let Some(part) = parts.next() {
        factory.refine = Some(refine(part)?);
    }
    if let Some(part) = parts.next() {
        return Err(format!("\"{part}\" is too much"));
    }
    if factory.code == Code::Flat && factory.refine.is_some() {
        return Err("Flat codes need no refinement".to_owned());
    }
    if factory.code == Code::Flat && factory.transform.is_some() {
        return Err("Flat codes are not transformed".to_owned());
    }
    Ok(factory)
}

fn count<T: FromStr + PartialOrd + Default>(digits: &str, part: &str) -> Result<T, String> {
    let number = digits.parse().ok().filter(|number| {
        *number > T::default() && digits.starts_with(|c: char| c.is_ascii_digit())
    });
    number.ok_or_else(|| format!("\"{part}\" has no positive number"))
}

fn transform(part: &str) -> Result<TransformKind, String> {
    if part == "RR" {
        return Ok(TransformKind::RandomRotation);
    }
    if let Some(out) = part.strip_prefix("PCA") {
        let out = count(out, part)?;
        return Ok(TransformKind::Pca { out });
    }
    if let Some(numbers) = part.strip_prefix("OPQ") {
        let (m, out) = match numbers.split_once('_') {
            None => (count(numbers, part)?, None),
            Some((m, out)) => (count(m, part)?, Some(count(out, part)?)),
        };
        return Ok(TransformKind::Opq { m, out });
    }
    Err(format!("\"{part}\" is not known before IVF"))
}

fn code(part: &str) -> Result<Code, String> {
    match part {
        "Flat" => Ok(Code::Flat),
        "SQ8" => Ok(Code::Lossy(QuantizerKind::Sq8)),
        "SQ4" => Ok(Code::Lossy(QuantizerKind::Sq4)),
        "SQfp16" => Ok(Code::Lossy(QuantizerKind::SqFp16)),
        "RaBitQ" => Ok(Code::Lossy(QuantizerKind::Signs)),
        _ => product(part),
    }
}

fn product(part: &str) -> Result<Code, String> {
    let numbers = part
        .strip_prefix("PQ")
        .ok_or_else(|| format!("\"{part}\" is not a known code"))?;
    let kind = match numbers.strip_suffix("x4fs") {
        Some(m) => QuantizerKind::Pq4 { m: count(m, part)? },
        None => QuantizerKind::Pq {
            m: count(numbers.strip_suffix("x8").unwrap_or(numbers), part)?,
        },
    };
    Ok(Code::Lossy(kind))
}

fn refine(part: &str) -> Result<Code, String> {
    let name = match part {
        "RFlat" => "Flat",
        _ => part
            .strip_prefix("Refine(")
            .and_then(|part| part.strip_suffix(')'))
            .unwrap_or(""),
    };
    match name {
        "Flat" | "SQ8" | "SQfp16" => code(name),
        _ => Err(format!("\"{part}\" is not a known refinement")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_understood_is_written_as_it_was_read() {
        for string in [
            "IVF,Flat",
            "IVF,SQ8",
            "IVF,SQ4,RFlat",
            "RR,IVF,RaBitQ,Refine(SQ8)",
            "IVF,SQfp16,Refine(SQfp16)",
            "PCA64,IVF,SQ8",
            "OPQ16_64,IVF,PQ16,RFlat",
            "OPQ16,IVF,PQ16",
            "IVF,PQ48x4fs,Refine(SQ8)",
        ] {
            let factory: Factory = string.parse().unwrap();
            assert_eq!(factory.to_string(), string);
            assert_eq!(factory.lists, None);
        }
        let factory: Factory = "IVF1024, SQ8,Refine(Flat)".parse().unwrap();
        assert_eq!(factory.lists, Some(1024));
        assert_eq!(factory.to_string(), "IVF,SQ8,RFlat");
    }

    #[test]
    fn what_is_not_is_refused_with_what_is() {
        for string in [
            "",
            "Flat",
            "IVF",
            "IVF0,Flat",
            "IVF99999999999,Flat",
            "IVF-1,Flat",
            "IVFx,Flat",
            "IVF4,",
            "IVF4,SQ9",
            "IVF4,SQ8,Refine(SQ8",
            "IVF4,SQ8,Refine(RaBitQ)",
            "IVF4,SQ8,RFlat,RFlat",
            "IVF4,Flat,RFlat",
            "RR,IVF4,Flat",
            "HNSW32,IVF4,SQ8",
            "IVF4_HNSW,SQ8",
            "ivf4,sq8",
            "PCA,IVF,SQ8",
            "PCA+3,IVF,SQ8",
            "OPQ,IVF,PQ16",
            "OPQ16_,IVF,PQ16",
            "IVF,PQ0",
            "IVF,PQ8x5",
            "IVF,PQ8x4",
        ] {
            let error = string.parse::<Factory>().unwrap_err();
            assert!(error.to_string().contains(string), "{error}");
            assert!(error.hint().contains("RaBitQ"));
        }
    }
}
