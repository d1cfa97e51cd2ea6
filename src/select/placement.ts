/** Where the parts of a model go on a machine with GPUs. */

/** Layers that one device computes; those of all parts follow each other without gaps. */
export interface DevicePart {
  readonly device: number;
  readonly firstLayer: number;
  /** One past the last. */
  readonly end: number;
}

export interface DevicePlacement {
  readonly parts: readonly DevicePart[];
  /** Of each layer, [layers]: experts that find room on its device; dense layers have none. */
  readonly residentExperts: readonly number[];
}
