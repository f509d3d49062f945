pub(crate) struct Sheet<'a> { pub(crate) source: Vec<String>, pub(crate) produced: Vec<String>, pub(crate) title: String, pub(crate) probability: f64, pub(crate) n_heads: usize, pub(crate) layers: &'a [Vec<f32>] }
pub(crate) fn svg(s: &Sheet<'_>) -> crate::engine::Result<String> { let _ = (&s.source,&s.produced,&s.title,s.probability,s.n_heads,s.layers); Ok(String::new()) }
