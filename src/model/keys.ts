/** Typed access to metadata: any integer width, arrays for per-layer values, and one sentence when a value is absurd. */
import { perigeeError } from '../errors.ts';
import type { GgufScalar, GgufValue } from '../gguf/types.ts';

interface Range {
  readonly least: number;
  readonly most: number;
}

interface IntegerRange extends Range {
  /** Taken when the key is absent; without it the key is required. */
  readonly absent?: number;
}

/** Layers [from, to) that a per-layer array must agree on. */
interface LayerSpan {
  readonly from: number;
  readonly to: number;
}

function show(value: GgufValue | undefined): string {
  if (value === undefined) return 'absent';
  const text = Array.isArray(value)
    ? `an array of ${value.length}`
    : JSON.stringify(value, (_, item) => (typeof item === 'bigint' ? `${item}` : item));
  return text.length > 80 ? `${text.slice(0, 77)}...` : text;
}

export class MetadataKeys {
  readonly #metadata: ReadonlyMap<string, GgufValue>;
  readonly #prefix: string;

  /** Reads keys `${architecture}.${key}`. */
  constructor(metadata: ReadonlyMap<string, GgufValue>, architecture: string) {
    this.#metadata = metadata;
    this.#prefix = `${architecture}.`;
  }

  has(key: string): boolean {
    return this.#metadata.has(this.#prefix + key);
  }

  fail(key: string, expected: string): Error {
    const full = this.#prefix + key;
    return perigeeError('MODEL_BAD_CONFIG', { key: full, found: show(this.#metadata.get(full)), expected });
  }

  integer(key: string, range: IntegerRange): number {
    const value = this.#metadata.get(this.#prefix + key);
    if (value === undefined && range.absent !== undefined) return range.absent;
    return this.#inRange(key, value, range);
  }

  /** An integer that may be stored per layer: an array counts when the layers of `span` agree. */
  layerInteger(key: string, range: IntegerRange, span: LayerSpan): number {
    const value = this.#metadata.get(this.#prefix + key);
    if (!Array.isArray(value)) return this.integer(key, range);
    const values: readonly GgufScalar[] = value.slice(span.from, span.to);
    if (values.length !== span.to - span.from || values.some((item) => item !== values[0])) {
      throw this.fail(key, `one value for layers ${span.from} to ${span.to - 1}`);
    }
    return this.#inRange(key, values[0], range);
  }

  #inRange(key: string, value: GgufValue | undefined, range: Range): number {
    if (typeof value !== 'number' || !Number.isInteger(value) || value < range.least || value > range.most) {
      throw this.fail(key, `an integer from ${range.least} to ${range.most}`);
    }
    return value;
  }

  /** A finite number in (least, most]; integers are taken too. */
  number(key: string, range: Range & { readonly absent?: number }): number {
    const value = this.#metadata.get(this.#prefix + key);
    if (value === undefined && range.absent !== undefined) return range.absent;
    if (typeof value !== 'number' || !(value >= range.least && value <= range.most)) {
      throw this.fail(key, `a number from ${range.least} to ${range.most}`);
    }
    return value;
  }

  boolean(key: string, absent: boolean): boolean {
    const value = this.#metadata.get(this.#prefix + key) ?? absent;
    if (value === true || value === 1) return true;
    if (value === false || value === 0) return false;
    throw this.fail(key, 'true or false');
  }

  text(key: string): string | undefined {
    const value = this.#metadata.get(this.#prefix + key);
    if (value !== undefined && typeof value !== 'string') throw this.fail(key, 'a string');
    return value;
  }
}
