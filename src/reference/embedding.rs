//! Ids to rows: scale · token\[id\] + position\[p\] + segment\[s\].

use super::{Real, count, expect_len};
use crate::error::{Error, Result};
use crate::shape::nonzero;
use crate::spec::Sequence;
use crate::spec::layers::Embedding;

/// An embedding's operands.
#[derive(Clone, Copy, Debug)]
pub struct EmbeddingInputs<'a, T> {
    /// Token table (vocabulary, d_model).
    pub token_table: &'a [T],
    /// Position table (positions, d_model), exactly where the embedding has positions.
    pub position_table: Option<&'a [T]>,
    /// Segment table (segments, d_model), exactly where the embedding has segments.
    pub segment_table: Option<&'a [T]>,
    /// Token ids (rows).
    pub ids: &'a [u32],
    /// Segment ids (rows), exactly where the embedding has segments.
    pub segment_ids: Option<&'a [u32]>,
    /// Where the sequences' rows lie, for the positions; `None` for one sequence of all rows from position 0.
    pub sequences: Option<&'a [Sequence]>,
}

/// y (rows, d_model), without the norm, which is the layer's.
///
/// `y[r] = scale · token[ids[r]] + position[p] + segment[segment_ids[r]]`, p being the row's place in its sequence + the
/// sequence's offset + `first_position`.
///
/// An id, segment or position outside its table gives a row of zeros; so does a row that belongs to no sequence, where
/// positions are used.
///
/// # Errors
/// As [`Embedding::check`]; [`Error::Shape`] for a slice of another length, [`Error::Missing`] for a table or segment ids
/// that are not there, [`Error::Option`] for ones that are too much or no rows.
pub fn embedding<T: Real>(spec: &Embedding, inputs: &EmbeddingInputs<'_, T>) -> Result<Vec<T>> {
    check(spec, inputs)?;
    let (rows, d) = (inputs.ids.len(), spec.d_model);
    let scale = T::of(spec.scale);
    let mut y = Vec::with_capacity(count("y", &[rows, d])?);
    for (r, &id) in inputs.ids.iter().enumerate() {
        // the row of each table, None where one lies outside
        let token = table_row(inputs.token_table, d, i64::from(id));
        let position = inputs.position_table.map(|table| {
            let p = position(inputs.sequences, r).and_then(|p| p.checked_add_unsigned(spec.first_position as u64))?;
            table_row(table, d, p)
        });
        let segment =
            inputs.segment_table.zip(inputs.segment_ids).map(|(table, ids)| table_row(table, d, i64::from(ids[r])));
        let (Some(token), None | Some(Some(_)), None | Some(Some(_))) = (token, position, segment) else {
            y.extend(vec![T::zero(); d]);
            continue;
        };
        for c in 0..d {
            let mut sum = scale * token[c];
            for table in [position, segment].into_iter().flatten().flatten() {
                sum += table[c];
            }
            y.push(sum);
        }
    }
    Ok(y)
}

/// y (rows, d_model): x (rows, d_model) + the row of `table` (positions, d_model) at each row's position.
///
/// As in [`embedding`] with `first_position` 0: a position outside the table, or none, gives a row of zeros.
///
/// # Errors
/// [`Error::Shape`] for a slice of another length, [`Error::Option`] for a size of 0.
pub fn add_positions<T: Real>(
    x: &[T],
    table: &[T],
    sequences: Option<&[Sequence]>,
    rows: usize,
    positions: usize,
    d_model: usize,
) -> Result<Vec<T>> {
    for (name, size) in [("rows", rows), ("positions", positions), ("d_model", d_model)] {
        nonzero(name, size)?;
    }
    expect_len("x", &[rows, d_model], x.len())?;
    expect_len("position table", &[positions, d_model], table.len())?;
    let mut y = Vec::with_capacity(x.len());
    for (r, x) in x.chunks_exact(d_model).enumerate() {
        match position(sequences, r).and_then(|p| table_row(table, d_model, p)) {
            Some(position) => y.extend(x.iter().zip(position).map(|(&x, &p)| x + p)),
            None => y.extend(vec![T::zero(); d_model]),
        }
    }
    Ok(y)
}

/// The row's place in its sequence plus the sequence's offset; none where it belongs to no sequence.
fn position(sequences: Option<&[Sequence]>, row: usize) -> Option<i64> {
    let Some(sequences) = sequences else { return Some(row as i64) };
    let place = |s: &Sequence| row.checked_sub(s.q_start as usize).filter(|&i| i < s.q_len as usize);
    sequences.iter().find_map(|s| Some(place(s)? as i64 + i64::from(s.offset)))
}

fn table_row<T>(table: &[T], d: usize, row: i64) -> Option<&[T]> {
    let start = usize::try_from(row).ok()?.checked_mul(d)?;
    table.get(start..start.checked_add(d)?)
}

fn check<T>(spec: &Embedding, inputs: &EmbeddingInputs<'_, T>) -> Result<()> {
    spec.check()?;
    nonzero("rows", inputs.ids.len())?;
    expect_len("token table", &[spec.vocabulary, spec.d_model], inputs.token_table.len())?;
    let d = spec.d_model;
    let optional = |name: &str, sizes: Option<Vec<usize>>, found: Option<usize>| match (sizes, found) {
        (Some(sizes), Some(found)) => expect_len(name, &sizes, found),
        (Some(sizes), None) => Err(Error::Missing { tensor: name.into(), expected: format!("{sizes:?}") }),
        (None, Some(_)) => Err(Error::option(name, "none, as the embedding has none", "one")),
        (None, None) => Ok(()),
    };
    optional("position table", spec.positions.map(|n| vec![n, d]), inputs.position_table.map(<[T]>::len))?;
    optional("segment table", spec.segments.map(|n| vec![n, d]), inputs.segment_table.map(<[T]>::len))?;
    optional("segment ids", spec.segments.map(|_| vec![inputs.ids.len()]), inputs.segment_ids.map(<[u32]>::len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Sequences;

    const TOKENS: [f32; 6] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]; // (3, 2)
    const POSITIONS: [f32; 8] = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]; // (4, 2)

    fn tokens(ids: &[u32]) -> EmbeddingInputs<'_, f32> {
        EmbeddingInputs {
            token_table: &TOKENS,
            position_table: None,
            segment_table: None,
            ids,
            segment_ids: None,
            sequences: None,
        }
    }

    #[test]
    fn tokens_are_scaled_and_foreign_ids_give_zeros() -> Result<()> {
        let spec = Embedding { scale: 2.0, ..Embedding::new(3, 2) };
        assert_eq!(embedding(&spec, &tokens(&[2, 0, 3]))?, [10.0, 12.0, 2.0, 4.0, 0.0, 0.0]);
        assert!(embedding(&spec, &tokens(&[])).is_err());
        assert!(embedding(&Embedding::new(4, 2), &tokens(&[0])).is_err());
        Ok(())
    }

    #[test]
    fn positions_follow_sequence_offset_and_first_position() -> Result<()> {
        let spec = Embedding { positions: Some(4), first_position: 1, ..Embedding::new(3, 2) };
        let bare = EmbeddingInputs { position_table: Some(&POSITIONS), ..tokens(&[0, 0, 0, 0]) };
        // one sequence from position 0, which has row 1 of the table; the last row leaves it
        let expected = [1.2, 2.3, 1.4, 2.5, 1.6, 2.7, 0.0, 0.0];
        assert_eq!(embedding(&spec, &bare)?, expected);
        // two sequences whose first query stands at −2: only the second rows are at a position the table has
        let sequences = Sequences::padded(&[2, 2], 2)?.with_offset(-2);
        let packed = EmbeddingInputs { sequences: Some(sequences.as_slice()), ..bare };
        assert_eq!(embedding(&spec, &packed)?, [0.0, 0.0, 1.0, 2.1, 0.0, 0.0, 1.0, 2.1]);
        // a row of no sequence
        let short = Sequences::packed(&[3])?;
        let gap = EmbeddingInputs { sequences: Some(short.as_slice()), ..bare };
        assert_eq!(embedding(&Embedding { first_position: 0, ..spec }, &gap)?[6..], [0.0, 0.0]);
        assert!(embedding(&spec, &tokens(&[0])).is_err());
        Ok(())
    }

    #[test]
    fn segments() -> Result<()> {
        let spec = Embedding { segments: Some(2), ..Embedding::new(3, 2) };
        let inputs = EmbeddingInputs {
            segment_table: Some(&[10.0, 20.0, 30.0, 40.0]),
            segment_ids: Some(&[1, 0, 2]),
            ..tokens(&[0, 1, 2])
        };
        assert_eq!(embedding(&spec, &inputs)?, [31.0, 42.0, 13.0, 24.0, 0.0, 0.0]);
        assert!(embedding(&spec, &EmbeddingInputs { segment_ids: None, ..inputs }).is_err());
        assert!(embedding(&Embedding::new(3, 2), &inputs).is_err());
        Ok(())
    }

    #[test]
    fn positions_are_added_to_rows() -> Result<()> {
        let sequences = Sequences::packed(&[1, 2])?.with_offset(2);
        let y = add_positions(&[1.0; 6], &POSITIONS, Some(sequences.as_slice()), 3, 4, 2)?;
        assert_eq!(y, [1.4, 1.5, 1.4, 1.5, 1.6, 1.7]);
        let y = add_positions(&[1.0; 6], &POSITIONS[..4], None, 3, 2, 2)?;
        assert_eq!(y, [1.0, 1.1, 1.2, 1.3, 0.0, 0.0]);
        assert!(add_positions(&[1.0; 5], &POSITIONS, None, 3, 4, 2).is_err());
        Ok(())
    }
}
