//! Parser events to a tree, within limits.
//!
//! The events come from serde-saphyr's parser. Its serde front end is not used: it recurses once per level with large frames (2 MiB of
//! stack end at sixty levels in a debug build), and it knows the lines of values only when asked for each.

use std::collections::{HashMap, HashSet};

use serde_json::Value;
use serde_saphyr::granit_parser::{ErrorKind, Event, Parser, ScanError};

use super::scalar::{Scalar, resolve};
use super::tree::{Entry, Node, Tree};
use super::{Limits, YamlErrorKind};

/// Why a text cannot be composed.
pub(super) struct ComposeError {
    pub(super) line: u64,
    pub(super) kind: YamlErrorKind,
    pub(super) message: String,
}

/// Reads one document; `None` if the text has none. `lines_before` is added to line numbers.
pub(super) fn compose(text: &str, lines_before: u64, limits: &Limits) -> Result<Option<Tree>, ComposeError> {
    let mut options = serde_saphyr::granit_parser::options! {
        flow_nesting_limit: limits.depth,
        block_nesting_limit: limits.depth,
    };
    options.set_emit_comments(false);
    let mut composer =
        Composer { limits, stack: Vec::new(), anchors: HashMap::new(), root: None, nodes: 0, retained: 0 };
    for event in Parser::new_from_str_with_options(text, options) {
        let (event, span) = event.map_err(|error| scan_error(&error, lines_before))?;
        let line = lines_before + span.start.line().max(1) as u64;
        composer.apply(event, line)?;
    }
    Ok(composer.root)
}

struct Composer<'a> {
    limits: &'a Limits,
    stack: Vec<Frame>,
    anchors: HashMap<usize, Tree>,
    root: Option<Tree>,
    nodes: usize,
    retained: usize,
}

/// A collection that is not complete.
struct Frame {
    line: u64,
    anchor: usize,
    size: usize,
    depth: usize,
    content: Content,
}

enum Content {
    Sequence(Vec<Tree>),
    Mapping(Mapping),
}

#[derive(Default)]
struct Mapping {
    entries: Vec<Entry>,
    keys: HashSet<String>,
    /// The key whose value comes next.
    pending: Option<(Key, u64)>,
    /// The values of `<<` keys.
    merges: Vec<Tree>,
}

enum Key {
    Text(String),
    Merge,
}

impl Composer<'_> {
    fn apply(&mut self, event: Event<'_>, line: u64) -> Result<(), ComposeError> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.count(line)?;
                let scalar =
                    resolve(&text, style, tag.as_deref()).map_err(|message| syntax(line, message))?;
                if self.expects_key() {
                    // An anchored key is rare, but an alias may refer to it.
                    if anchor != 0 {
                        self.retain(anchor, &leaf(line, &scalar), line)?;
                    }
                    return self.key(scalar, line);
                }
                self.complete(leaf(line, &scalar), anchor)
            }
            Event::SequenceStart(_, anchor, _) => self.open(line, anchor, Content::Sequence(Vec::new())),
            Event::MappingStart(_, anchor, _) => {
                self.open(line, anchor, Content::Mapping(Mapping::default()))
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Alias(anchor) => self.alias(anchor, line),
            Event::DocumentStart(..) if self.root.is_some() => {
                Err(syntax(line, "here begins another document, without a --- line".to_owned()))
            }
            // The enum is open: the rest carries no content (stream and document marks; comments are off).
            _ => Ok(()),
        }
    }

    fn expects_key(&self) -> bool {
        matches!(
            self.stack.last(),
            Some(Frame { content: Content::Mapping(Mapping { pending: None, .. }), .. })
        )
    }

    fn count(&mut self, line: u64) -> Result<(), ComposeError> {
        self.nodes += 1;
        if self.nodes > self.limits.nodes {
            return Err(limit(line, format!("the document has more than {} values", self.limits.nodes)));
        }
        Ok(())
    }

    fn open(&mut self, line: u64, anchor: usize, content: Content) -> Result<(), ComposeError> {
        self.count(line)?;
        if self.expects_key() {
            return Err(syntax(line, "a key must be a string, not a mapping or sequence".to_owned()));
        }
        if self.stack.len() >= self.limits.depth {
            return Err(self.too_deep(line));
        }
        self.stack.push(Frame { line, anchor, size: 1, depth: 1, content });
        Ok(())
    }

    fn close(&mut self) -> Result<(), ComposeError> {
        // The parser ends only what it has begun.
        let Some(frame) = self.stack.pop() else { return Ok(()) };
        let Frame { line, anchor, mut size, mut depth, content } = frame;
        let node = match content {
            Content::Sequence(items) => Node::Sequence(items),
            Content::Mapping(mapping) => {
                let (entries, merged_size, merged_depth) = mapping.merged()?;
                size += merged_size;
                depth = depth.max(merged_depth);
                Node::Mapping(entries)
            }
        };
        self.complete(Tree { line, size, depth, node }, anchor)
    }

    fn alias(&mut self, anchor: usize, line: u64) -> Result<(), ComposeError> {
        let Some(target) = self.anchors.get(&anchor) else {
            return Err(syntax(line, "an alias refers to what contains it".to_owned()));
        };
        // Charged before it is copied, or a bomb would go off first.
        self.retained += target.size;
        if self.retained > self.limits.alias_nodes {
            return Err(self.too_many_aliases(line));
        }
        if self.stack.len() + target.depth > self.limits.depth {
            return Err(self.too_deep(line));
        }
        let mut tree = target.clone();
        tree.line = line;
        if self.expects_key() {
            let value = match tree.node {
                Node::Scalar(value) => value,
                Node::Word(word, _) => word.into(),
                _ => {
                    return Err(syntax(line, "a key must be a string, not a mapping or sequence".to_owned()));
                }
            };
            return self.key(Scalar { value, is_merge: false, word: None }, line);
        }
        self.complete(tree, 0)
    }

    fn key(&mut self, scalar: Scalar, line: u64) -> Result<(), ComposeError> {
        let Some(Frame { content: Content::Mapping(mapping), .. }) = self.stack.last_mut() else {
            return Ok(());
        };
        let key = match scalar.value {
            Value::String(_) if scalar.is_merge => Key::Merge,
            Value::String(text) => Key::Text(text),
            // JSON has string keys only: `portLevelMtls: {8080: …}` means "8080".
            value @ (Value::Number(_) | Value::Bool(_)) => Key::Text(value.to_string()),
            _ => return Err(syntax(line, "a key must be a string".to_owned())),
        };
        if let Key::Text(text) = &key
            && !mapping.keys.insert(text.clone())
        {
            return Err(syntax(line, format!("duplicate key {text:?}")));
        }
        mapping.pending = Some((key, line));
        Ok(())
    }

    /// Puts a complete node where it belongs.
    fn complete(&mut self, tree: Tree, anchor: usize) -> Result<(), ComposeError> {
        if anchor != 0 {
            self.retain(anchor, &tree, tree.line)?;
        }
        let Some(frame) = self.stack.last_mut() else {
            self.root = Some(tree);
            return Ok(());
        };
        frame.size += tree.size;
        frame.depth = frame.depth.max(tree.depth + 1);
        match &mut frame.content {
            Content::Sequence(items) => items.push(tree),
            Content::Mapping(mapping) => match mapping.pending.take() {
                Some((Key::Text(key), line)) => mapping.entries.push(Entry { key, line, value: tree }),
                Some((Key::Merge, _)) => mapping.merges.push(tree),
                None => {}
            },
        }
        Ok(())
    }

    fn retain(&mut self, anchor: usize, tree: &Tree, line: u64) -> Result<(), ComposeError> {
        self.retained += tree.size;
        if self.retained > self.limits.alias_nodes {
            return Err(self.too_many_aliases(line));
        }
        self.anchors.insert(anchor, tree.clone());
        Ok(())
    }

    fn too_deep(&self, line: u64) -> ComposeError {
        limit(line, format!("nested more than {} levels deep", self.limits.depth))
    }

    fn too_many_aliases(&self, line: u64) -> ComposeError {
        limit(line, format!("anchors and aliases stand for more than {} values", self.limits.alias_nodes))
    }
}

impl Mapping {
    /// Adds the entries of merged mappings, of which own and earlier ones win. Returns also what they add in size and depth.
    fn merged(mut self) -> Result<(Vec<Entry>, usize, usize), ComposeError> {
        if self.merges.is_empty() {
            return Ok((self.entries, 0, 0));
        }
        let (mut size, mut depth) = (0, 0);
        for merge in self.merges {
            let sources = match merge.node {
                Node::Sequence(items) => items,
                _ => vec![merge],
            };
            for source in sources {
                let Node::Mapping(entries) = source.node else {
                    return Err(syntax(
                        source.line,
                        "<< takes a mapping, or a sequence of mappings".to_owned(),
                    ));
                };
                for entry in entries {
                    if self.keys.insert(entry.key.clone()) {
                        size += entry.value.size;
                        depth = depth.max(entry.value.depth + 1);
                        self.entries.push(entry);
                    }
                }
            }
        }
        Ok((self.entries, size, depth))
    }
}

fn leaf(line: u64, scalar: &Scalar) -> Tree {
    let node = match (&scalar.value, scalar.word) {
        (Value::String(text), Some(meaning)) => Node::Word(text.clone(), meaning),
        (value, _) => Node::Scalar(value.clone()),
    };
    Tree { line, size: 1, depth: 0, node }
}

fn scan_error(error: &ScanError, lines_before: u64) -> ComposeError {
    let kind = match error.kind() {
        ErrorKind::RecursionLimitExceeded => YamlErrorKind::Limit,
        _ => YamlErrorKind::Syntax,
    };
    let message = error.info().split_whitespace().collect::<Vec<_>>().join(" ");
    ComposeError { line: lines_before + error.marker().line().max(1) as u64, kind, message }
}

fn syntax(line: u64, message: String) -> ComposeError {
    ComposeError { line, kind: YamlErrorKind::Syntax, message }
}

fn limit(line: u64, message: String) -> ComposeError {
    ComposeError { line, kind: YamlErrorKind::Limit, message }
}
