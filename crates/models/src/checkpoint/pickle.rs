//! What PyTorch pickles for a state dictionary, and nothing else: an interpreter
//! of Python's pickle format that knows a handful of callables and calls none of
//! them. Everything else, such as code, is an error.
//!
//! The format is described by Python's `pickletools`, the callables by PyTorch's
//! `torch/_utils.py`. Containers lie in tables and are named by their place, so
//! that neither deep nesting nor cycles cost more than the bytes they take.

use std::collections::HashMap;
use std::rc::Rc;

use super::torch::StoredTensor;

/// A value of the stack.
#[derive(Debug, Clone)]
enum Value {
    Mark,
    None,
    Bool,
    Float,
    Int(i64),
    Text(Rc<str>),
    Tuple(usize),
    List,
    Dict(usize),
    Callable(Callable),
    Storage(Rc<Storage>),
    Tensor(Rc<StoredTensor>),
}

/// The callables of state dictionaries.
#[derive(Debug, Clone, Copy)]
enum Callable {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    /// The type of a storage; the name of its numbers in safetensors.
    Storage(&'static str),
}

/// A file of the archive with numbers of one type.
#[derive(Debug)]
struct Storage {
    dtype: &'static str,
    key: Rc<str>,
}

/// Of a tensor; models have four at most.
const MAX_DIMENSIONS: usize = 8;
const CALLABLES: [(&str, Callable); 14] = [
    ("collections.OrderedDict", Callable::OrderedDict),
    ("torch._utils._rebuild_tensor_v2", Callable::RebuildTensor),
    (
        "torch._utils._rebuild_parameter",
        Callable::RebuildParameter,
    ),
    ("torch.FloatStorage", Callable::Storage("F32")),
    ("torch.HalfStorage", Callable::Storage("F16")),
    ("torch.BFloat16Storage", Callable::Storage("BF16")),
    ("torch.DoubleStorage", Callable::Storage("F64")),
    ("torch.LongStorage", Callable::Storage("I64")),
    ("torch.IntStorage", Callable::Storage("I32")),
    ("torch.ShortStorage", Callable::Storage("I16")),
    ("torch.CharStorage", Callable::Storage("I8")),
    ("torch.ByteStorage", Callable::Storage("U8")),
    ("torch.BoolStorage", Callable::Storage("BOOL")),
    ("torch.ComplexFloatStorage", Callable::Storage("C64")),
];

/// Why a pickle is not read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PickleError {
    /// It calls or names what state dictionaries do not.
    Code(String),
    /// It is no pickle, or half of one.
    Damaged(String),
    /// It is the pickle of something else.
    NotADictionary,
}

type Result<T> = std::result::Result<T, PickleError>;

fn damaged<T>(reason: impl Into<String>) -> Result<T> {
    Err(PickleError::Damaged(reason.into()))
}

/// Tensors of a pickled state dictionary by name. What else it holds is left out.
pub(super) fn read_state_dict(bytes: &[u8]) -> Result<Vec<(String, StoredTensor)>> {
    let mut machine = Machine {
        rest: bytes,
        ..Machine::default()
    };
    while !machine.step()? {}
    let Some(Value::Dict(root)) = machine.stack.pop() else {
        return Err(PickleError::NotADictionary);
    };
    let entries = machine.dicts[root].iter();
    Ok(entries
        .filter_map(|(key, value)| match (key, value) {
            (Value::Text(name), Value::Tensor(tensor)) => {
                Some((name.to_string(), StoredTensor::clone(tensor)))
            }
            _ => None,
        })
        .collect())
}

#[derive(Default)]
struct Machine<'a> {
    rest: &'a [u8],
    stack: Vec<Value>,
    memo: HashMap<u32, Value>,
    tuples: Vec<Rc<[Value]>>,
    dicts: Vec<Vec<(Value, Value)>>,
}

impl Machine<'_> {
    /// Executes one instruction; whether it was the last.
    fn step(&mut self) -> Result<bool> {
        let [code] = self.take()?;
        match code {
            b'.' => return Ok(true),
            0x80 => {
                let [version] = self.take()?;
                if version > 3 {
                    return damaged(format!("its pickle protocol is {version}"));
                }
            }
            b'c' => {
                let callable = self.global()?;
                self.stack.push(Value::Callable(callable));
            }
            b'(' => self.stack.push(Value::Mark),
            b'N' => self.stack.push(Value::None),
            0x88 | 0x89 => self.stack.push(Value::Bool),
            b']' => self.stack.push(Value::List),
            b')' => self.push_tuple(Vec::new()),
            b'}' => self.push_dict(),
            b'K' => {
                let [value] = self.take()?;
                self.stack.push(Value::Int(value.into()));
            }
            b'M' => {
                let value = u16::from_le_bytes(self.take()?);
                self.stack.push(Value::Int(value.into()));
            }
            b'J' => {
                let value = i32::from_le_bytes(self.take()?);
                self.stack.push(Value::Int(value.into()));
            }
            0x8a => self.long()?,
            b'G' => {
                self.take::<8>()?;
                self.stack.push(Value::Float);
            }
            b'X' => self.text()?,
            _ => self.step_further(code)?,
        }
        Ok(false)
    }

    /// Instructions that work on the stack.
    fn step_further(&mut self, code: u8) -> Result<()> {
        match code {
            b'q' | b'r' => {
                let index = self.index(code == b'q')?;
                let top = self.stack.last().cloned();
                let Some(top) = top else {
                    return damaged("it remembers what is not there");
                };
                self.memo.insert(index, top);
            }
            b'h' | b'j' => {
                let index = self.index(code == b'h')?;
                let Some(value) = self.memo.get(&index).cloned() else {
                    return damaged("it refers to what it does not hold");
                };
                self.stack.push(value);
            }
            b't' => {
                let items = self.pop_to_mark()?;
                self.push_tuple(items);
            }
            0x85..=0x87 => {
                let count = usize::from(code - 0x84);
                let Some(start) = self.stack.len().checked_sub(count) else {
                    return damaged("its stack is too short");
                };
                let items = self.stack.split_off(start);
                self.push_tuple(items);
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set_items(vec![key, value])?;
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.set_items(items)?;
            }
            // Lists are no tensors; what is in them does not matter.
            b'a' => drop(self.pop()?),
            b'e' => drop(self.pop_to_mark()?),
            // The attributes of a dictionary, its versions.
            b'b' => match (self.pop()?, self.stack.last()) {
                (_, Some(Value::Dict(_))) => {}
                _ => return Err(PickleError::Code("the state of an object".to_owned())),
            },
            b'Q' => self.persistent()?,
            b'R' => self.call()?,
            _ => {
                return damaged(format!(
                    "its instruction {code:#04x} is none of a state dictionary"
                ));
            }
        }
        Ok(())
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let Some((bytes, rest)) = self.rest.split_first_chunk::<N>() else {
            return damaged("it ends too early");
        };
        self.rest = rest;
        Ok(*bytes)
    }

    fn take_slice(&mut self, length: usize) -> Result<&[u8]> {
        let Some((bytes, rest)) = self.rest.split_at_checked(length) else {
            return damaged("it ends too early");
        };
        self.rest = rest;
        Ok(bytes)
    }

    fn index(&mut self, short: bool) -> Result<u32> {
        Ok(if short {
            let [index] = self.take()?;
            index.into()
        } else {
            u32::from_le_bytes(self.take()?)
        })
    }

    fn pop(&mut self) -> Result<Value> {
        match self.stack.pop() {
            Some(value) => Ok(value),
            None => damaged("its stack is too short"),
        }
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Value>> {
        let mark = |value: &Value| matches!(value, Value::Mark);
        let Some(mark) = self.stack.iter().rposition(mark) else {
            return damaged("its stack has no mark");
        };
        let items = self.stack.split_off(mark + 1);
        self.stack.pop();
        Ok(items)
    }

    fn push_tuple(&mut self, items: Vec<Value>) {
        self.tuples.push(items.into());
        self.stack.push(Value::Tuple(self.tuples.len() - 1));
    }

    fn push_dict(&mut self) {
        self.dicts.push(Vec::new());
        self.stack.push(Value::Dict(self.dicts.len() - 1));
    }

    fn set_items(&mut self, items: Vec<Value>) -> Result<()> {
        let Some(Value::Dict(dict)) = self.stack.last() else {
            return damaged("it sets items of what is no dictionary");
        };
        let mut items = items.into_iter();
        while let (Some(key), Some(value)) = (items.next(), items.next()) {
            self.dicts[*dict].push((key, value));
        }
        Ok(())
    }

    fn global(&mut self) -> Result<Callable> {
        let module = self.line()?;
        let name = format!("{module}.{}", self.line()?);
        let known = CALLABLES.iter().find(|(known, _)| *known == name);
        known
            .map(|(_, callable)| *callable)
            .ok_or(PickleError::Code(name))
    }

    fn line(&mut self) -> Result<String> {
        let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') else {
            return damaged("it ends too early");
        };
        let line = String::from_utf8_lossy(self.take_slice(end)?).into_owned();
        self.take::<1>()?;
        Ok(line)
    }

    fn text(&mut self) -> Result<()> {
        let length = u32::from_le_bytes(self.take()?) as usize;
        let Ok(text) = str::from_utf8(self.take_slice(length)?) else {
            return damaged("a text in it is not UTF-8");
        };
        let text = Value::Text(text.into());
        self.stack.push(text);
        Ok(())
    }

    /// An integer of up to 8 bytes, little endian with sign.
    fn long(&mut self) -> Result<()> {
        let [length] = self.take()?;
        let bytes = self.take_slice(length.into())?;
        let negative = bytes.last().is_some_and(|byte| *byte >= 0x80);
        let mut wide = [if negative { 0xff } else { 0 }; 8];
        let Some(low) = wide.get_mut(..bytes.len()) else {
            return damaged("a number in it is too large");
        };
        low.copy_from_slice(bytes);
        self.stack.push(Value::Int(i64::from_le_bytes(wide)));
        Ok(())
    }

    /// The items of a tuple that must be on top of the stack.
    fn pop_tuple(&mut self) -> Result<Rc<[Value]>> {
        match self.pop()? {
            Value::Tuple(index) => Ok(self.tuples[index].clone()),
            _ => damaged("its arguments are no tuple"),
        }
    }

    /// ("storage", type, key, device, elements) to the storage.
    fn persistent(&mut self) -> Result<()> {
        let items = self.pop_tuple()?;
        let [
            Value::Text(kind),
            Value::Callable(Callable::Storage(dtype)),
            Value::Text(key),
            ..,
        ] = &*items
        else {
            return damaged("it refers to something that is no storage");
        };
        if &**kind != "storage" {
            return damaged("it refers to something that is no storage");
        }
        let storage = Storage {
            dtype,
            key: key.clone(),
        };
        self.stack.push(Value::Storage(storage.into()));
        Ok(())
    }

    fn call(&mut self) -> Result<()> {
        let arguments = self.pop_tuple()?;
        let result = match (self.pop()?, &*arguments) {
            (Value::Callable(Callable::OrderedDict), []) => {
                self.push_dict();
                return Ok(());
            }
            (
                Value::Callable(Callable::RebuildTensor),
                [
                    Value::Storage(storage),
                    Value::Int(offset),
                    Value::Tuple(shape),
                    Value::Tuple(strides),
                    ..,
                ],
            ) => Value::Tensor(Rc::new(StoredTensor {
                dtype: storage.dtype,
                storage: storage.key.to_string(),
                offset: natural(&Value::Int(*offset))?,
                shape: self.naturals(*shape)?,
                strides: self.naturals(*strides)?,
            })),
            (Value::Callable(Callable::RebuildParameter), [Value::Tensor(tensor), ..]) => {
                Value::Tensor(tensor.clone())
            }
            _ => return damaged("a call in it has other arguments than PyTorch's"),
        };
        self.stack.push(result);
        Ok(())
    }

    fn naturals(&self, tuple: usize) -> Result<Vec<usize>> {
        let items = &self.tuples[tuple];
        if items.len() > MAX_DIMENSIONS {
            return damaged("a tensor in it has too many dimensions");
        }
        items.iter().map(natural).collect()
    }
}

fn natural(value: &Value) -> Result<usize> {
    match value {
        Value::Int(number) => {
            usize::try_from(*number).or_else(|_| damaged(format!("{number} is no size")))
        }
        _ => damaged("a size in it is no number"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Vec<(String, StoredTensor)>> {
        read_state_dict(bytes)
    }

    /// A dictionary of one tensor of shape (3, 2) after 5 elements, as PyTorch pickles it.
    const ONE: &[u8] = b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01ctorch._utils\n_rebuild_tensor_v2\nq\x02(\
        (X\x07\x00\x00\x00storageq\x03ctorch\nHalfStorage\nq\x04X\x01\x00\x00\x000q\x05X\x03\x00\x00\x00cpuq\x06K\x0btq\x07QK\x05\
        K\x03K\x02\x86q\x08K\x02K\x01\x86q\t\x89ccollections\nOrderedDict\nq\n)Rq\x0btq\x0cRq\rs.";

    #[test]
    fn a_tensor_is_described() {
        let expected = StoredTensor {
            dtype: "F16",
            storage: "0".to_owned(),
            offset: 5,
            shape: vec![3, 2],
            strides: vec![2, 1],
        };
        assert_eq!(read(ONE).unwrap(), [("a".to_owned(), expected)]);
    }

    #[test]
    fn every_truncation_is_damage() {
        for length in 0..ONE.len() {
            assert!(
                matches!(read(&ONE[..length]), Err(PickleError::Damaged(_))),
                "{length}"
            );
        }
    }

    #[test]
    fn every_changed_byte_is_read_or_refused() {
        for place in 0..ONE.len() {
            for byte in 0..=255 {
                let mut bytes = ONE.to_vec();
                bytes[place] = byte;
                // Whatever comes of it, it comes.
                let _ = read(&bytes);
            }
        }
    }

    #[test]
    fn code_is_named_and_not_run() {
        let code = b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.";
        assert_eq!(
            read(code),
            Err(PickleError::Code("posix.system".to_owned()))
        );
    }

    #[test]
    fn deep_nesting_and_cycles_are_harmless() {
        let mut deep = b"\x80\x02N".to_vec();
        deep.extend([0x85].repeat(1_000_000));
        deep.push(b'.');
        assert_eq!(read(&deep), Err(PickleError::NotADictionary));
        assert_eq!(
            read(b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.").unwrap(),
            []
        );
    }
}
