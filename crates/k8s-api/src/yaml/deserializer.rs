//! A tree as a serde deserializer that knows where it is.
//!
//! What a scalar means can depend on the field it is for, an error knows its path, and so does a field that nobody reads.
//! That this is one deserializer, without adapters around it, matters for build times: serde's code is made anew for
//! every type of Kubernetes' and Istio's API, and for every adapter once more.

use std::cell::RefCell;

use serde::de::value::BorrowedStrDeserializer;
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Unexpected, Visitor};
use serde_json::{Error, Value};

use super::tree::{Entry, Node, Step, Tree};

/// A typed value and the paths of fields that it has no place for.
pub(super) struct Decoded<T> {
    pub(super) value: T,
    pub(super) ignored: Vec<Vec<Step>>,
}

/// Why a value does not fit its type, and the path of the one that does not.
pub(super) struct Misfit {
    pub(super) path: Vec<Step>,
    pub(super) message: String,
}

/// Decodes a value, noting fields that are not read.
pub(super) fn decode<T: DeserializeOwned>(tree: &Tree) -> Result<Decoded<T>, Misfit> {
    let notes = Notes::default();
    match T::deserialize(Cursor { tree, notes: &notes }) {
        Ok(value) => Ok(Decoded { value, ignored: notes.ignored.into_inner() }),
        Err(error) => {
            let path = notes.failed_at.into_inner().unwrap_or_default();
            Err(Misfit { path, message: error.to_string() })
        }
    }
}

/// What is learnt on the way.
#[derive(Default)]
struct Notes<'de> {
    /// From the root to the value that is being read.
    path: RefCell<Vec<Place<'de>>>,
    ignored: RefCell<Vec<Vec<Step>>>,
    /// Where the first error arose. The values around it fail because of it.
    failed_at: RefCell<Option<Vec<Step>>>,
}

/// A [`Step`] without a copy of the key.
#[derive(Clone, Copy)]
enum Place<'de> {
    Key(&'de str),
    Index(usize),
}

impl<'de> Notes<'de> {
    fn here(&self) -> Vec<Step> {
        let step = |place: &Place<'_>| match place {
            Place::Key(key) => Step::Key((*key).to_owned()),
            Place::Index(index) => Step::Index(*index),
        };
        self.path.borrow().iter().map(step).collect()
    }

    /// Reads the child that `place` leads to.
    fn descend<T: DeserializeSeed<'de>>(
        &self,
        place: Place<'de>,
        tree: &'de Tree,
        seed: T,
    ) -> Result<T::Value, Error> {
        self.path.borrow_mut().push(place);
        let result = seed.deserialize(Cursor { tree, notes: self });
        if result.is_err() {
            self.failed_at.borrow_mut().get_or_insert_with(|| self.here());
        }
        self.path.borrow_mut().pop();
        result
    }
}

/// A node, on the way through its tree.
struct Cursor<'a, 'de> {
    tree: &'de Tree,
    notes: &'a Notes<'de>,
}

impl<'de> Deserializer<'de> for Cursor<'_, 'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.tree.node {
            Node::Scalar(scalar) => visit_scalar(scalar, visitor),
            Node::Word(word, _) => visitor.visit_borrowed_str(word),
            Node::Sequence(items) => visitor.visit_seq(Items { items, next: 0, notes: self.notes }),
            Node::Mapping(entries) => visitor.visit_map(Entries { entries, next: 0, notes: self.notes }),
        }
    }

    /// `enabled: on` is a boolean where one is wanted, and `name: off` a string.
    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.tree.node {
            Node::Word(_, meaning) => visitor.visit_bool(*meaning),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.tree.node {
            Node::Scalar(Value::Null) => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.tree.as_str() {
            Some(variant) => visitor.visit_enum(BorrowedStrDeserializer::new(variant)),
            // No type of this crate has variants with content.
            None => self.deserialize_any(visitor),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.notes.ignored.borrow_mut().push(self.notes.here());
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map
        struct identifier
    }
}

fn visit_scalar<'de, V: Visitor<'de>>(scalar: &'de Value, visitor: V) -> Result<V::Value, Error> {
    match scalar {
        Value::Null => visitor.visit_unit(),
        Value::Bool(value) => visitor.visit_bool(*value),
        Value::String(text) => visitor.visit_borrowed_str(text),
        Value::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
            (Some(number), _, _) => visitor.visit_u64(number),
            (_, Some(number), _) => visitor.visit_i64(number),
            (_, _, Some(number)) => visitor.visit_f64(number),
            (None, None, None) => Err(serde::de::Error::invalid_value(Unexpected::Other("number"), &visitor)),
        },
        // The composer makes nodes of these.
        Value::Array(_) | Value::Object(_) => {
            Err(serde::de::Error::invalid_type(Unexpected::Other("content"), &visitor))
        }
    }
}

struct Items<'a, 'de> {
    items: &'de [Tree],
    next: usize,
    notes: &'a Notes<'de>,
}

impl<'de> SeqAccess<'de> for Items<'_, 'de> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let Some(item) = self.items.get(self.next) else { return Ok(None) };
        let place = Place::Index(self.next);
        self.next += 1;
        self.notes.descend(place, item, seed).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len() - self.next)
    }
}

struct Entries<'a, 'de> {
    entries: &'de [Entry],
    next: usize,
    notes: &'a Notes<'de>,
}

impl<'de> MapAccess<'de> for Entries<'_, 'de> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some(entry) = self.entries.get(self.next) else { return Ok(None) };
        self.next += 1;
        seed.deserialize(BorrowedStrDeserializer::new(&entry.key)).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Error> {
        let entry = self.next.checked_sub(1).and_then(|last| self.entries.get(last));
        let entry = entry.ok_or_else(|| serde::de::Error::custom("a value was asked for before its key"))?;
        self.notes.descend(Place::Key(&entry.key), &entry.value, seed)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.entries.len() - self.next)
    }
}
