//! Text to ids and back: the vocabularies, the lines to translate, and what is wrong with a line that cannot be.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, BufRead};

/// Where padding stands in both vocabularies.
const PAD: &str = "<pad>";
/// What begins a target.
const BOS: &str = "<bos>";
/// What ends a target.
const EOS: &str = "<eos>";

/// A string to translate: where it stood and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// Counted from 1, over blank lines too.
    pub(crate) number: usize,
    pub(crate) text: String,
}

/// Each argument as a line.
pub(crate) fn argument_lines(arguments: &[String]) -> Vec<Line> {
    arguments.iter().enumerate().map(|(i, text)| Line { number: i + 1, text: text.clone() }).collect()
}

/// The lines of `input` that are not blank.
pub(crate) fn read_lines(mut input: impl BufRead) -> Result<Vec<Line>, ReadError> {
    let mut lines = Vec::new();
    for number in 1.. {
        let mut bytes = Vec::new();
        if input.read_until(b'\n', &mut bytes).map_err(ReadError::Io)? == 0 {
            break;
        }
        let text = String::from_utf8(bytes).map_err(|_| ReadError::NotText { number })?;
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let text = text.strip_suffix('\r').unwrap_or(text);
        if !text.trim().is_empty() {
            lines.push(Line { number, text: text.to_owned() });
        }
    }
    Ok(lines)
}

/// Why lines could not be read.
#[derive(Debug)]
pub(crate) enum ReadError {
    /// A line is not UTF-8.
    NotText { number: usize },
    /// The input failed.
    Io(io::Error),
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotText { number } => write!(f, "line {number} is not text (UTF-8)"),
            Self::Io(error) => write!(f, "standard input: {error}"),
        }
    }
}

/// The characters that the model reads.
#[derive(Clone, Debug)]
pub(crate) struct SourceVocabulary {
    ids: HashMap<char, u32>,
    characters: String,
    longest: usize,
}

impl SourceVocabulary {
    /// From the list in the model's file: `<pad>`, then one character each.
    pub(crate) fn new(tokens: Vec<String>, longest: usize) -> Result<Self, String> {
        expect_token("source", &tokens, 0, PAD)?;
        let mut ids = HashMap::new();
        for (id, token) in (1u32..).zip(&tokens[1..]) {
            let mut characters = token.chars();
            match (characters.next(), characters.next()) {
                (Some(c), None) if ids.insert(c, id).is_none() => {}
                _ => return Err(format!("source vocabulary: {token:?} is not one new character")),
            }
        }
        Ok(Self { ids, characters: tokens[1..].concat(), longest })
    }

    /// How many ids there are.
    pub(crate) fn len(&self) -> usize {
        self.ids.len() + 1
    }

    /// The ids of a line's characters.
    pub(crate) fn encode(&self, line: &Line) -> Result<Vec<u32>, TextError> {
        let error = |problem| Err(TextError { number: line.number, problem });
        if line.text.trim().is_empty() {
            return error(Problem::Empty);
        }
        if let Some((i, found)) = line.text.chars().enumerate().find(|(_, c)| !self.ids.contains_key(c)) {
            return error(Problem::Unknown { column: i + 1, found, known: ranges(&self.characters) });
        }
        let ids: Vec<u32> = line.text.chars().filter_map(|c| self.ids.get(&c).copied()).collect();
        if ids.len() > self.longest {
            return error(Problem::TooLong { found: ids.len(), longest: self.longest });
        }
        Ok(ids)
    }
}

/// The characters that the model writes.
#[derive(Clone, Debug)]
pub(crate) struct TargetVocabulary {
    tokens: Vec<String>,
}

impl TargetVocabulary {
    /// The id that begins a target.
    pub(crate) const BOS: u32 = 1;
    /// The id that ends a target.
    pub(crate) const EOS: u32 = 2;

    /// From the list in the model's file: `<pad>`, `<bos>`, `<eos>`, then the rest.
    pub(crate) fn new(tokens: Vec<String>) -> Result<Self, String> {
        for (at, token) in [PAD, BOS, EOS].into_iter().enumerate() {
            expect_token("target", &tokens, at, token)?;
        }
        Ok(Self { tokens })
    }

    /// How many ids there are.
    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// The text of one id; an id outside the vocabulary shows as U+FFFD.
    pub(crate) fn token(&self, id: u32) -> &str {
        self.tokens.get(id as usize).map_or("\u{fffd}", String::as_str)
    }

    /// The text of ids up to the first `<eos>`.
    pub(crate) fn decode(&self, ids: &[u32]) -> String {
        ids.iter().take_while(|&&id| id != Self::EOS).map(|&id| self.token(id)).collect()
    }
}

/// The produced ids up to and with the first `<eos>`: what stands behind it was made only because the batch went on.
pub(crate) fn cut(ids: &[u32]) -> &[u32] {
    let end = ids.iter().position(|&id| id == TargetVocabulary::EOS).map_or(ids.len(), |at| at + 1);
    &ids[..end]
}

fn expect_token(which: &str, tokens: &[String], at: usize, token: &str) -> Result<(), String> {
    match tokens.get(at) {
        Some(found) if found == token => Ok(()),
        found => Err(format!("{which} vocabulary: entry {at} is {token:?} in this example, {found:?} in the file")),
    }
}

/// Characters as a person reads them: runs of letters and digits as ranges, the space by name.
fn ranges(characters: &str) -> String {
    let mut sorted: Vec<char> = characters.chars().collect();
    sorted.sort_unstable();
    let mut runs: Vec<(char, char)> = Vec::new();
    for c in sorted {
        match runs.last_mut() {
            Some((_, last)) if c.is_alphanumeric() && last.is_alphanumeric() && u32::from(c) == u32::from(*last) + 1 => {
                *last = c;
            }
            _ => runs.push((c, c)),
        }
    }
    let name = |&(first, last): &(char, char)| match (first, last) {
        (' ', _) => "space".into(),
        (first, last) if first == last => first.to_string(),
        (first, last) => format!("{first}-{last}"),
    };
    runs.iter().map(name).collect::<Vec<String>>().join(" ")
}

/// A line that the model cannot read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TextError {
    number: usize,
    problem: Problem,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Problem {
    Empty,
    Unknown { column: usize, found: char, known: String },
    TooLong { found: usize, longest: usize },
}

impl fmt::Display for TextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}", self.number)?;
        match &self.problem {
            Problem::Empty => f.write_str(" is empty"),
            Problem::Unknown { column, found, known } => {
                let code = u32::from(*found);
                write!(f, ", character {column}: the model has no {found:?} (U+{code:04X}); it knows {known}")
            }
            Problem::TooLong { found, longest } => {
                write!(f, " has {found} characters; the model reads at most {longest}")
            }
        }
    }
}
