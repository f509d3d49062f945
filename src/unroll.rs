//! Unrolls loops of a shader that are marked for it.
//!
//! Registers have no addresses: an array in them needs indices that are known when the shader is compiled. Compilers unroll loops with
//! small bodies by themselves, and leave larger ones, at the price of arrays in memory or a ladder of comparisons for each access.

use std::borrow::Cow;

use crate::classes::Class;

const MARK: &str = "{  // unroll\n";

/// `text` with every loop `for (var i = 0u; i < N; i++) {  // unroll` replaced by N blocks with a constant i: N is a number or a
/// constant of `class`, and the loop's brace closes on a line of its own. What does not look so stays a loop.
pub(crate) fn unrolled(text: &str, class: &Class) -> String {
    let mut text = Cow::Borrowed(text);
    let mut from = 0;
    while let Some(mark) = text[from..].find(MARK).map(|at| from + at) {
        match replacement(&text, mark, class) {
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

/// Where the loop whose mark is at `mark` begins and ends, and what stands in its place.
fn replacement(text: &str, mark: usize, class: &Class) -> Option<(usize, usize, String)> {
    let start = text[..mark].rfind('\n').map_or(0, |at| at + 1);
    let head = text[start..mark].trim();
    let mut words = head.strip_prefix("for (var ")?.split([' ', ';', ')', '=', '<']).filter(|w| !w.is_empty());
    let [index, "0u", again, bound, step] = [words.next()?, words.next()?, words.next()?, words.next()?, words.next()?]
    else {
        return None;
    };
    if again != index || step.strip_suffix("++") != Some(index) {
        return None;
    }
    let constant = class.constants.iter().find(|(name, _)| *name == bound).map(|(_, value)| *value);
    let count = constant.or_else(|| bound.strip_suffix('u')?.parse().ok())?;

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

    const CLASS: Class = Class { name: "test", constants: &[("N", 2)] };

    #[test]
    fn marked_loops_become_blocks() {
        let text = "a\n  for (var i = 0u; i < N; i++) {  // unroll\n    x[i] = 1;\n  }\nb\n";
        let expected = "a\n  {\n    const i = 0u;\n    x[i] = 1;\n  }\n  {\n    const i = 1u;\n    x[i] = 1;\n  }\nb\n";
        assert_eq!(unrolled(text, &CLASS), expected);
    }

    #[test]
    fn loops_in_marked_loops_too() {
        let inner = "  for (var j = 0u; j < 3u; j++) {  // unroll\n    if x { y(); }\n  }\n";
        let text = format!("for (var i = 0u; i < N; i++) {{  // unroll\n{inner}}}\n");
        let found = unrolled(&text, &CLASS);
        assert!(!found.contains("for"), "{found}");
        assert_eq!(found.matches("y();").count(), 6, "{found}");
        assert_eq!(found.matches("const j = 2u;").count(), 2, "{found}");
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
        ] {
            assert_eq!(unrolled(text, &CLASS), text);
        }
    }
}
