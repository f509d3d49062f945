//! Unrolls loops of a shader that are marked for it.
//!
//! Registers have no addresses: an array in them needs indices that are known when the shader is compiled. Compilers unroll loops with
//! small bodies by themselves, and leave larger ones, at the price of arrays in memory or a ladder of comparisons for each access.

use std::borrow::Cow;
use std::collections::HashMap;

const MARK: &str = "{  // unroll\n";

type Constants = HashMap<String, u32>;

/// `text` with every loop `for (var i = 0u; i < N; i++) {  // unroll` replaced by N blocks with a constant i: N is an expression of
/// numbers and of the text's constants, and the loop's brace closes on a line of its own. What does not look so stays a loop.
pub(crate) fn unrolled(text: &str) -> String {
    let constants = constants(text);
    let mut text = Cow::Borrowed(text);
    let mut from = 0;
    while let Some(mark) = text[from..].find(MARK).map(|at| from + at) {
        match replacement(&text, mark, &constants) {
            // The copies may hold marked loops of their own.
            Some((start, end, copies)) => {
                text = Cow::Owned([&text[..start], &copies, &text[end..]].concat());
                from = start;
            }
            None => from = mark + MARK.len(),
        }
    }
    text.into_owned()
}

/// The constants `const NAME: u32 = …;` of a text, each on a line of its own behind those that it is made of.
fn constants(text: &str) -> Constants {
    let mut found = Constants::new();
    for line in text.lines() {
        let Some((name, rest)) = line.strip_prefix("const ").and_then(|line| line.split_once(": u32 = ")) else { continue };
        if let Some(value) = rest.split_once(';').and_then(|(expression, _)| value(expression, &found)) {
            found.insert(name.to_owned(), value);
        }
    }
    found
}

/// What an expression comes to, in u32: numbers, constants, + - * / %, parentheses, max and min of two.
fn value(expression: &str, constants: &Constants) -> Option<u32> {
    let (value, rest) = sum(expression, constants)?;
    rest.trim().is_empty().then_some(value)
}

/// The sum that `text` begins with, and the text behind it.
fn sum<'a>(text: &'a str, constants: &Constants) -> Option<(u32, &'a str)> {
    let (mut value, mut rest) = product(text, constants)?;
    while let Some(sign @ ('+' | '-')) = rest.trim_start().chars().next() {
        let (next, behind) = product(&rest.trim_start()[1..], constants)?;
        value = if sign == '+' { value.checked_add(next)? } else { value.checked_sub(next)? };
        rest = behind;
    }
    Some((value, rest))
}

fn product<'a>(text: &'a str, constants: &Constants) -> Option<(u32, &'a str)> {
    let (mut value, mut rest) = operand(text, constants)?;
    while let Some(sign @ ('*' | '/' | '%')) = rest.trim_start().chars().next() {
        let (next, behind) = operand(&rest.trim_start()[1..], constants)?;
        value = match sign {
            '*' => value.checked_mul(next)?,
            '/' => value.checked_div(next)?,
            _ => value.checked_rem(next)?,
        };
        rest = behind;
    }
    Some((value, rest))
}

fn operand<'a>(text: &'a str, constants: &Constants) -> Option<(u32, &'a str)> {
    let text = text.trim_start();
    let (word, rest) = text.split_at(text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len()));
    if word.is_empty() || word == "max" || word == "min" {
        let (first, rest) = sum(rest.strip_prefix('(')?, constants)?;
        if word.is_empty() {
            return Some((first, rest.trim_start().strip_prefix(')')?));
        }
        let (second, rest) = sum(rest.trim_start().strip_prefix(',')?, constants)?;
        let value = if word == "max" { first.max(second) } else { first.min(second) };
        return Some((value, rest.trim_start().strip_prefix(')')?));
    }
    let value = constants.get(word).copied().or_else(|| word.strip_suffix('u')?.parse().ok())?;
    Some((value, rest))
}

/// Where the loop whose mark is at `mark` begins and ends, and what stands in its place.
fn replacement(text: &str, mark: usize, constants: &Constants) -> Option<(usize, usize, String)> {
    let start = text[..mark].rfind('\n').map_or(0, |at| at + 1);
    let head = text[start..mark].trim().strip_prefix("for (var ")?.strip_suffix(')')?;
    let (index, rest) = head.split_once(" = 0u; ")?;
    let (bound, step) = rest.strip_prefix(index)?.strip_prefix(" < ")?.split_once("; ")?;
    if step.strip_suffix("++") != Some(index) {
        return None;
    }
    let count = value(bound, constants)?;

    let indent = &text[start..start + text[start..mark].len() - text[start..mark].trim_start().len()];
    let close = format!("\n{indent}}}\n");
    let body = mark + MARK.len();
    let end = body + text[body - 1..].find(&close)?;
    let body = &text[body..end];
    let copy = |i: u32| format!("{indent}{{\n{indent}  const {index} = {i}u;\n{body}{indent}}}\n");
    Some((start, end + close.len() - 1, (0..count).map(copy).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const N: &str = "const N: u32 = 2u;\n";

    #[test]
    fn marked_loops_become_blocks() {
        let text = format!("{N}a\n  for (var i = 0u; i < N; i++) {{  // unroll\n    x[i] = 1;\n  }}\nb\n");
        let expected = "a\n  {\n    const i = 0u;\n    x[i] = 1;\n  }\n  {\n    const i = 1u;\n    x[i] = 1;\n  }\nb\n";
        assert_eq!(unrolled(&text), format!("{N}{expected}"));
    }

    #[test]
    fn loops_in_marked_loops_too() {
        let inner = "  for (var j = 0u; j < 3u; j++) {  // unroll\n    if x { y(); }\n  }\n";
        let text = format!("{N}for (var i = 0u; i < N; i++) {{  // unroll\n{inner}}}\n");
        let found = unrolled(&text);
        assert!(!found.contains("for"), "{found}");
        assert_eq!(found.matches("y();").count(), 6, "{found}");
        assert_eq!(found.matches("const j = 2u;").count(), 2, "{found}");
    }

    #[test]
    fn bounds_are_expressions_of_the_constants_of_the_text() {
        let text = format!("{N}const M: u32 = max(N * 3u - 1u, 4u);  // 5\nconst F: f32 = 2.0;\nconst G: u32 = other();\n");
        let constants = constants(&text);
        for (expression, expected) in [
            ("M", Some(5)),
            ("(M + N - 1u) / N", Some(3)),
            ("7u - N - N", Some(3)),
            ("2u + 3u * 4u % 7u", Some(7)),
            ("min(M, (N)) + max( 1u , N/2u )", Some(3)),
            ("N - M", None),
            ("N / 0u", None),
            ("M N", None),
            ("(M", None),
            ("N +", None),
            ("F", None),
            ("G", None),
            ("3", None),
            ("", None),
        ] {
            assert_eq!(value(expression, &constants), expected, "{expression}");
        }
    }

    #[test]
    fn shaders_leave_no_marked_loop() {
        for variant in crate::kernels::variants() {
            assert!(!variant.source().contains("// unroll"), "{variant:?}");
        }
    }

    #[test]
    fn what_is_not_marked_or_not_known_stays() {
        for text in [
            "for (var i = 0u; i < N; i++) {\n  x();\n}\n",
            "for (var i = 0u; i < M; i++) {  // unroll\n  x();\n}\n",
            "for (var i = 1u; i < N; i++) {  // unroll\n  x();\n}\n",
            "for (var i = 0u; i < N; k++) {  // unroll\n  x();\n}\n",
            "for (var i = 0u; k < N; i++) {  // unroll\n  x();\n}\n",
        ] {
            let text = format!("{N}{text}");
            assert_eq!(unrolled(&text), text);
        }
    }
}
