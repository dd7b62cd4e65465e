//! Products with weights in blocks, as `device_tests`.

use candle_core::quantized::QTensor;
use candle_core::{Device, Tensor};

use super::device_tests::{Place, places};
use super::reference::{self, Rows};
use super::testing::values;
use crate::quantized::{BlockBytes, Precision, QuantizedWeight};

const FORMATS: [Precision; 2] = [Precision::Weights, Precision::Output];

/// A weight of these sizes, and the numbers that it has on the device.
fn weight(place: &Place, precision: Precision, size: (usize, usize)) -> (Rows, QuantizedWeight) {
    let whole = values(&[size.0, size.1], 2, 0.1);
    let quantized = QTensor::quantize(&whole, precision.format()).unwrap();
    let decoded = quantized.dequantize(&Device::Cpu).unwrap();
    let expected = match place.is_gpu() {
        true => place.both(&decoded).0,
        false => reference::rows(&decoded),
    };
    let bytes = BlockBytes::Made(quantized.data().unwrap().into_owned());
    let weight = QuantizedWeight::new(bytes, precision, size, &place.device).unwrap();
    (expected, weight)
}

#[test]
fn few_rows_and_many_multiply_with_blocks() {
    for mut place in places() {
        if !place.is_gpu() {
            // There the inputs are rounded to 8 bits.
            place.tolerance = 2e-2;
        }
        for precision in FORMATS {
            for (inputs, outputs) in [(256, 5), (512, 37), (768, 16), (2048, 330)] {
                let (decoded, weight) = weight(&place, precision, (outputs, inputs));
                for count in [1, 3, 8, 9, 16, 17, 32, 33, 64, 65, 90] {
                    let (x, on_device) = place.values(&[count, inputs], 1, 2.0);
                    let expected = reference::product(&x, &decoded);
                    let what = format!("{count} x {inputs} x {outputs} of {precision:?}");
                    let actual = weight.product(&on_device).unwrap();
                    place.assert_near(&actual, &expected, &what);
                }
            }
        }
    }
}

/// Each input has a column of the weight to itself: what it gives is the decoded weight.
#[test]
fn every_weight_of_a_block_is_decoded() {
    const INPUTS: usize = 512;
    for mut place in places() {
        if !place.is_gpu() {
            place.tolerance = 5e-3;
        }
        for precision in FORMATS {
            let (decoded, weight) = weight(&place, precision, (20, INPUTS));
            let column = |input: usize| decoded.iter().map(|row| row[input]).collect();
            let expected: Rows = (0..INPUTS).map(column).collect();
            let unit = |at: usize| f32::from(u8::from(at / INPUTS == at % INPUTS));
            let units: Vec<f32> = (0..INPUTS * INPUTS).map(unit).collect();
            let units = Tensor::from_vec(units, (INPUTS, INPUTS), &Device::Cpu).unwrap();
            let (_, units) = place.both(&units);
            for rows in [20, INPUTS] {
                for first in (0..INPUTS).step_by(rows) {
                    let rows = rows.min(INPUTS - first);
                    let actual = weight.product(&units.narrow(0, first, rows).unwrap());
                    let expected = expected[first..first + rows].to_vec();
                    let what = format!("weights of {rows} inputs of {precision:?}");
                    place.assert_near(&actual.unwrap(), &expected, &what);
                }
            }
        }
    }
}

#[test]
fn blocks_that_do_not_fit_are_refused() {
    for place in places() {
        for precision in FORMATS {
            let new = |bytes: usize, size| {
                let bytes = BlockBytes::Made(vec![0; bytes]);
                QuantizedWeight::new(bytes, precision, size, &place.device)
            };
            let bytes = precision.bytes(3, 512).unwrap() as usize;
            assert!(new(bytes - 1, (3, 512)).is_err());
            assert!(new(bytes + 1, (3, 512)).is_err());
            assert!(new(bytes, (3, 500)).is_err());
            let weight = new(bytes, (3, 512)).unwrap();
            let of = |width| place.values(&[2, width], 1, 1.0).1;
            assert!(weight.product(&of(512)).is_ok());
            assert!(weight.product(&of(256)).is_err());
        }
    }
}
