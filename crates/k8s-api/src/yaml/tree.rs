//! YAML as a tree whose nodes know their lines, and paths into it.

use std::fmt;

use serde_json::{Map, Value};

/// A node with the line on which it stands, counted from 1. It is never deeper than the limits allow, so that walks may recurse.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    pub(super) line: u64,
    /// The number of nodes, itself included.
    pub(super) size: usize,
    /// The levels of nesting: 0 for a scalar.
    pub(super) depth: usize,
    pub(super) node: Node,
}

#[derive(Clone, Debug)]
pub(super) enum Node {
    Scalar(Value),
    /// A plain word that YAML 1.1 takes for a boolean (`on`, `no`), with its meaning. The field that it is for decides.
    Word(String, bool),
    Sequence(Vec<Tree>),
    Mapping(Vec<Entry>),
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) line: u64,
    pub(super) value: Tree,
}

/// A step from a node to one of its children.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Key(String),
    Index(usize),
}

/// Displays steps as people write paths: `spec.http[0].match`.
pub(super) struct Path<'a>(pub(super) &'a [Step]);

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, step) in self.0.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(key) if key.contains(['.', '/', '[', ' ']) => write!(f, "[{key:?}]")?,
                Step::Key(key) if position == 0 => f.write_str(key)?,
                Step::Key(key) => write!(f, ".{key}")?,
            }
        }
        Ok(())
    }
}

impl Tree {
    pub(super) fn empty_map(line: u64) -> Self {
        Self { line, size: 1, depth: 1, node: Node::Mapping(Vec::new()) }
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(self.node, Node::Scalar(Value::Null))
    }

    pub(super) fn is_mapping(&self) -> bool {
        matches!(self.node, Node::Mapping(_))
    }

    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        Some(&self.entry(key)?.value)
    }

    pub(super) fn as_str(&self) -> Option<&str> {
        match &self.node {
            Node::Scalar(Value::String(text)) | Node::Word(text, _) => Some(text),
            _ => None,
        }
    }

    pub(super) fn items(&self) -> Option<&[Self]> {
        match &self.node {
            Node::Sequence(items) => Some(items),
            _ => None,
        }
    }

    /// Returns the line of the node at a path, or of the deepest ancestor that exists. For a mapping's value that is its key's line.
    pub(super) fn line_of(&self, path: &[Step]) -> u64 {
        let mut line = self.line;
        let mut tree = self;
        for step in path {
            let next = match (step, &tree.node) {
                (Step::Key(key), Node::Mapping(_)) => tree.entry(key).map(|entry| (entry.line, &entry.value)),
                (Step::Index(index), Node::Sequence(items)) => {
                    items.get(*index).map(|item| (item.line, item))
                }
                _ => None,
            };
            let Some((next_line, child)) = next else { break };
            (line, tree) = (next_line, child);
        }
        line
    }

    pub(super) fn to_json(&self) -> Value {
        match &self.node {
            Node::Scalar(scalar) => scalar.clone(),
            Node::Word(word, _) => word.as_str().into(),
            Node::Sequence(items) => items.iter().map(Self::to_json).collect(),
            Node::Mapping(entries) => {
                let entries = entries.iter().map(|entry| (entry.key.clone(), entry.value.to_json()));
                Value::Object(entries.collect::<Map<_, _>>())
            }
        }
    }

    fn entry(&self, key: &str) -> Option<&Entry> {
        match &self.node {
            Node::Mapping(entries) => entries.iter().find(|entry| entry.key == key),
            _ => None,
        }
    }
}
