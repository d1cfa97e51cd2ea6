/** What the MODEL argument names. */
import { existsSync } from 'node:fs';
import { nanoFile } from '../runtime/assets.ts';
import { convertedCheckpoint, isCheckpoint } from './checkpoint-cache.ts';

export const modelHelp =
  'a GGUF file, the first part of a split one, a folder holding either, or a checkpoint (default: Nano)';

/** The path of the model: `argument`, or Nano. A Hugging Face checkpoint is converted first. */
export async function modelPath(argument: string | undefined): Promise<string> {
  if (argument === undefined) return nanoFile;
  return isCheckpoint(argument) ? convertedCheckpoint(argument) : argument;
}

/** Splits "[MODEL] TEXT...": the first word is a model when it ends in .gguf or something of that name exists. */
export function splitModelAndText(words: readonly string[]): { model: string | undefined; text: string } {
  const [first, ...rest] = words;
  if (first !== undefined && rest.length > 0 && (first.endsWith('.gguf') || existsSync(first)))
    return { model: first, text: rest.join(' ') };
  return { model: undefined, text: words.join(' ') };
}
