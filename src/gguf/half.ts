/** IEEE half precision, which JavaScript lacks before Float16Array is everywhere. */

const floats = new Float32Array(1);
const bits = new Uint32Array(floats.buffer);

/** The bits of the half nearest to `value`, ties to even; magnitudes beyond 65504 become infinity. */
export function halfBits(value: number): number {
  floats[0] = value;
  const float = bits[0] ?? 0;
  const sign = (float >>> 16) & 0x8000;
  const magnitude = Math.abs(floats[0] ?? 0);
  if (Number.isNaN(magnitude)) return 0x7e00;
  if (magnitude >= 65_520) return sign | 0x7c00;
  // Below the smallest normal half, steps are 2^-24 wide; above, the last 13 bits of the significand go.
  if (magnitude < 2 ** -14) return sign | roundToEven(magnitude * 2 ** 24);
  const kept = float & 0x7fffffff;
  return sign | ((kept + 0xfff + ((kept >>> 13) & 1) - (112 << 23)) >>> 13);
}

function roundToEven(value: number): number {
  const floor = Math.floor(value);
  const rest = value - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2 === 1) ? floor + 1 : floor;
}
