//! Which float additions a compiler may contract: make one with a product that feeds them, and so leave out a rounding.
//!
//! Each compilation does so as it likes, so that forms of a kernel that must agree to the bit can have none.

use std::collections::BTreeSet;

use naga::valid::ModuleInfo;
use naga::{BinaryOperator, Block, Expression, Function, Handle, Literal, MathFunction, Module, ScalarKind, Statement};

/// Somewhere a value is kept between expressions, in function number `.0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Local(usize, usize),
    Argument(usize, usize),
    Result(usize),
    Private(usize),
}

/// What the functions of a module hand on: which places may hold a float that is a product.
///
/// Workgroup memory and other threads' values are none: what comes from there was rounded. Built-in
/// functions that devices end in a product or a quotient are some.
struct Products<'m> {
    module: &'m Module,
    info: &'m ModuleInfo,
    places: BTreeSet<Place>,
}

/// The lines of `source` whose sum or difference has an operand that is a product or a quotient of floats, itself or by way of variables,
/// arguments, results and choices. Products by a power of two are exact, and none.
pub(super) fn contractible(module: &Module, info: &ModuleInfo, source: &str) -> BTreeSet<String> {
    let mut products = Products { module, info, places: BTreeSet::new() };
    loop {
        let before = products.places.len();
        for number in 0..products.functions() {
            products.follow(number, &products.function(number).body);
        }
        if products.places.len() == before {
            break;
        }
    }
    let mut lines = BTreeSet::new();
    for number in 0..products.functions() {
        let function = products.function(number);
        for (handle, expression) in function.expressions.iter() {
            let Expression::Binary { op: BinaryOperator::Add | BinaryOperator::Subtract, left, right } = *expression else {
                continue;
            };
            if products.is_float(number, handle) && [left, right].iter().any(|&e| products.is_product(number, e)) {
                let at = function.expressions.get_span(handle).location(source);
                lines.insert(source.lines().nth(at.line_number as usize - 1).unwrap_or_default().trim().to_owned());
            }
        }
    }
    lines
}

impl<'m> Products<'m> {
    fn functions(&self) -> usize {
        self.module.functions.len() + self.module.entry_points.len()
    }

    fn function(&self, number: usize) -> &'m Function {
        let functions = &self.module.functions;
        match functions.iter().nth(number) {
            Some((_, function)) => function,
            None => &self.module.entry_points[number - functions.len()].function,
        }
    }

    fn is_float(&self, number: usize, handle: Handle<Expression>) -> bool {
        let (functions, types) = (&self.module.functions, &self.module.types);
        let info = match functions.iter().nth(number) {
            Some((function, _)) => &self.info[function],
            None => self.info.get_entry_point(number - functions.len()),
        };
        info[handle].ty.inner_with(types).scalar_kind() == Some(ScalarKind::Float)
    }

    fn is_product(&self, number: usize, handle: Handle<Expression>) -> bool {
        let of = |handle: &Handle<Expression>| self.is_product(number, *handle);
        match &self.function(number).expressions[handle] {
            Expression::Binary { op, left, right } if self.is_float(number, handle) => {
                let exact = |e: &Handle<Expression>| self.is_power_of_two(number, *e);
                match op {
                    BinaryOperator::Divide if exact(left) => false,
                    // What it scales may be a product.
                    BinaryOperator::Multiply if exact(left) => of(right),
                    BinaryOperator::Multiply | BinaryOperator::Divide if exact(right) => of(left),
                    BinaryOperator::Multiply | BinaryOperator::Divide => true,
                    _ => false,
                }
            }
            Expression::Math { fun, .. } => matches!(fun, MathFunction::Tanh | MathFunction::Log | MathFunction::Sqrt),
            Expression::Unary { expr, .. } | Expression::As { expr, .. } => of(expr),
            Expression::Splat { value, .. } => of(value),
            Expression::Select { accept, reject, .. } => of(accept) || of(reject),
            Expression::Swizzle { vector, .. } => of(vector),
            Expression::Access { base, .. } | Expression::AccessIndex { base, .. } => of(base),
            Expression::Compose { components, .. } => components.iter().any(of),
            Expression::Load { pointer } => of(pointer),
            Expression::CallResult(callee) => self.places.contains(&Place::Result(callee.index())),
            Expression::FunctionArgument(_) | Expression::LocalVariable(_) | Expression::GlobalVariable(_) => {
                self.place(number, handle).is_some_and(|place| self.places.contains(&place))
            }
            _ => false,
        }
    }

    /// The variable or argument that a pointer leads to.
    fn place(&self, number: usize, pointer: Handle<Expression>) -> Option<Place> {
        match &self.function(number).expressions[pointer] {
            Expression::Access { base, .. } | Expression::AccessIndex { base, .. } => self.place(number, *base),
            Expression::LocalVariable(variable) => Some(Place::Local(number, variable.index())),
            Expression::FunctionArgument(index) => Some(Place::Argument(number, *index as usize)),
            Expression::GlobalVariable(variable) => {
                let private = self.module.global_variables[*variable].space == naga::AddressSpace::Private;
                private.then_some(Place::Private(variable.index()))
            }
            _ => None,
        }
    }

    fn is_power_of_two(&self, number: usize, handle: Handle<Expression>) -> bool {
        let exact = |literal: &Literal| matches!(literal, Literal::F32(v) if v.is_normal() && v.to_bits() << 9 == 0);
        match &self.function(number).expressions[handle] {
            Expression::Literal(literal) => exact(literal),
            Expression::Constant(constant) => {
                let init = self.module.constants[*constant].init;
                matches!(&self.module.global_expressions[init], Expression::Literal(literal) if exact(literal))
            }
            Expression::Splat { value, .. } => self.is_power_of_two(number, *value),
            Expression::Compose { components, .. } => components.iter().all(|&c| self.is_power_of_two(number, c)),
            _ => false,
        }
    }

    /// Adds the places that the statements of `block` put a product into.
    fn follow(&mut self, number: usize, block: &Block) {
        for statement in block {
            match statement {
                Statement::Block(block) => self.follow(number, block),
                Statement::If { accept: one, reject: other, .. } | Statement::Loop { body: one, continuing: other, .. } => {
                    self.follow(number, one);
                    self.follow(number, other);
                }
                Statement::Switch { cases, .. } => cases.iter().for_each(|case| self.follow(number, &case.body)),
                Statement::Store { pointer, value } if self.is_product(number, *value) => {
                    self.places.extend(self.place(number, *pointer));
                }
                Statement::Return { value: Some(value) } if self.is_product(number, *value) => {
                    self.places.insert(Place::Result(number));
                }
                Statement::Call { function, arguments, .. } => {
                    for (index, &argument) in arguments.iter().enumerate() {
                        let there = Place::Argument(function.index(), index);
                        if self.is_product(number, argument) {
                            self.places.insert(there);
                        } else if self.places.contains(&there) && self.is_pointer(*function, index) {
                            self.places.extend(self.place(number, argument));
                        }
                    }
                }
                _ => {}
            }
        }
    }

    fn is_pointer(&self, function: Handle<Function>, index: usize) -> bool {
        let ty = self.module.functions[function].arguments[index].ty;
        matches!(self.module.types[ty].inner, naga::TypeInner::Pointer { .. })
    }
}

#[cfg(test)]
#[allow(clippy::panic)]
mod tests {
    use super::*;
    use naga::valid::{Capabilities, ValidationFlags, Validator};

    /// Whether the last statement of `body`, which has functions and a loop around it to hide products in, is found.
    fn is_found(body: &str) -> bool {
        let source = format!(
            "@group(0) @binding(0) var<storage, read_write> m: array<f32>;
            var<private> kept: f32;
            fn times(a: f32, b: f32) -> f32 {{ return a * b; }}
            fn put(to: ptr<function, f32>, v: f32) {{ *to = v * m[3]; }}
            fn plus(a: f32) -> f32 {{ return a + m[4]; }} // callee
            @compute @workgroup_size(1) fn main() {{
              var v = m[0];
              for (var i = 0; i < 3; i++) {{ {body} // here
              }}
            }}"
        );
        let module = naga::front::wgsl::parse_str(&source).unwrap_or_else(|e| panic!("{}", e.emit_to_string(&source)));
        let info = Validator::new(ValidationFlags::all(), Capabilities::empty()).validate(&module);
        let info = info.unwrap_or_else(|e| panic!("{}", e.emit_to_string(&source)));
        let lines = contractible(&module, &info, &source);
        assert!(lines.iter().all(|line| line.contains("// here") || line.contains("// callee")), "{lines:?}");
        !lines.is_empty()
    }

    #[test]
    fn products_are_found_wherever_they_hide() {
        for body in [
            "m[0] = m[1] * m[2] + v;",
            "m[0] = v - m[1] / m[2];",
            "let p = vec2(m[1] * m[2], v); m[0] = -p.x + v;",
            "v += m[1]; v *= m[2];",
            "kept = m[1] * m[2]; m[0] = kept + v;",
            "m[0] = times(m[1], m[2]) + v;",
            "m[0] = plus(m[1] * m[2]);",
            "put(&v, m[1]); m[0] = v + m[2];",
            "m[0] = select(m[1], m[2] * v, i == 1) + v;",
            "m[0] = 1.0 + 0.5 * tanh(v);",
            "m[0] += log(v);",
        ] {
            assert!(is_found(body), "{body}");
        }
        for body in [
            "m[0] = fma(m[1], m[2], v);",
            "m[0] = fma(m[1] * m[2], v, m[3]) + m[4];",
            "m[0] = v - 0.5 * m[1] + m[2] / 4.0;",
            "m[0] = plus(max(m[1] * m[2], v));",
            "m[0] = times(plus(m[1]), 1.0 / (v + exp(m[2])));",
            "m[i * 2 + 1] = v;",
        ] {
            assert!(!is_found(body), "{body}");
        }
    }
}
