//! What must fit before a projection of a few rows is appended.

use super::{FewOutput, FusedNorm, LinearFew};
use crate::builder::Builder;
use crate::error::{Error, Result};
use crate::kernels::Linear;
use crate::spec::SEQUENCE_WORDS;
use crate::spec::layers::Norm;
use crate::tensor::Element;

impl Builder {
    /// Refuses what does not fit, and says how many columns are no keys and values.
    pub(super) fn check_few(&self, label: &str, few: &LinearFew) -> Result<usize> {
        let Linear { x, weight, bias, residual, y, .. } = few.linear;
        let (&[rows, d_in], &[d_out, _]) = (x.layout().sizes(), weight.layout().sizes()) else {
            let found = format!("{} and {}", x.layout(), weight.layout());
            return Err(Error::shape(label, "x (rows, d_in) and weight (d_out, d_in)", found));
        };
        let element = self.float(label, "x", x)?;
        self.expect(label, "x", x, element, &[rows, d_in])?;
        self.float(label, "weight", weight)?;
        self.expect_weight(label, &few.linear, element)?;
        let vectors = few.norm.map_or([None; 2], |n| [n.weight, n.bias]);
        for (name, tensor, size) in
            [("bias", bias, d_out), ("norm weight", vectors[0], d_in), ("norm bias", vectors[1], d_in)]
        {
            if let Some(tensor) = tensor {
                self.expect(label, name, tensor, element, &[size])?;
            }
        }
        if let Some(FusedNorm { eps, .. }) = few.norm {
            Norm { eps, ..Norm::default() }.check()?;
        }
        if let Some(sequences) = few.sequences {
            let batch = sequences.layout().sizes()[0];
            self.expect(label, "sequences", sequences, Element::U32, &[batch, SEQUENCE_WORDS])?;
        }
        if let (Some(residual), FewOutput::Append { .. } | FewOutput::Logits { .. }) = (residual, few.out) {
            return Err(Error::option(
                format!("residual of {label}"),
                "none, as the results are no rows",
                residual.layout(),
            ));
        }
        match few.out {
            FewOutput::Rows => {
                self.expect(label, "y", y, element, &[rows, d_out])?;
                if let Some(residual) = residual {
                    self.expect(label, "residual", residual, element, &[rows, d_out])?;
                }
                Ok(d_out)
            }
            FewOutput::Logits { maxima } => {
                self.expect(label, "y", y, Element::F32, &[rows, d_out])?;
                self.expect(label, "maxima", maxima, Element::U32, &[rows, self.logit_groups(weight)?, 2])?;
                Ok(d_out)
            }
            FewOutput::Append { cache, head_size, value_head_size } => {
                if few.sequences.is_none() {
                    let expected = "sequences, which say where the keys go".into();
                    return Err(Error::Missing { tensor: format!("sequences of {label}"), expected });
                }
                let &[_, slots, heads, capacity, width] = cache.layout().sizes() else {
                    return Err(Error::shape("cache", "(2, slots, NH_kv, S, W)", cache.layout()));
                };
                let width = width.max(head_size).max(value_head_size);
                self.expect(label, "cache", cache, element, &[2, slots, heads, capacity, width])?;
                let strides = cache.layout().strides();
                if strides[1] != heads * strides[2] || strides[2] != capacity * strides[3] {
                    return Err(Error::shape("cache", "slots and heads without gaps", cache.layout()));
                }
                let kept = heads.saturating_mul(head_size.saturating_add(value_head_size));
                let q_columns = d_out.checked_sub(kept).filter(|&q| q > 0 && q.is_multiple_of(head_size.max(1)));
                let (Some(q_columns), true) = (q_columns, head_size > 0 && value_head_size > 0) else {
                    let expected = format!("rows for q heads of {head_size} and {kept} rows for keys and values");
                    return Err(Error::shape(format!("weight of {label}"), expected, weight.layout()));
                };
                self.expect(label, "y", y, element, &[rows, q_columns])?;
                Ok(q_columns)
            }
        }
    }
}
