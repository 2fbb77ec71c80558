// JPEG and WebP of about the same size, by the browser's own encoders.

/** [{name, bytes, picture, encode, decode}]; the largest file of at most `budget` bytes, or the smallest there is. */
export async function jpegAndWebp(image, budget) {
  const canvas = new OffscreenCanvas(image.width, image.height);
  canvas.getContext("2d").putImageData(image, 0, 0);
  return Promise.all([rival("JPEG", "image/jpeg", canvas, budget), rival("WebP", "image/webp", canvas, budget)]);
}

async function rival(name, type, canvas, budget) {
  let low = 0;
  let high = 100;
  let begin = performance.now();
  let best = await canvas.convertToBlob({ type, quality: 0 });
  if (best.type !== type) return { name }; // the browser does not write this format
  let encode = performance.now() - begin;
  while (low < high) {
    const quality = Math.ceil((low + high) / 2);
    begin = performance.now();
    const blob = await canvas.convertToBlob({ type, quality: quality / 100 });
    if (blob.size <= budget) [best, low, encode] = [blob, quality, performance.now() - begin];
    else high = quality - 1;
  }
  begin = performance.now();
  const bitmap = await createImageBitmap(best);
  const out = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
  out.drawImage(bitmap, 0, 0);
  const picture = out.getImageData(0, 0, canvas.width, canvas.height);
  return { name, bytes: best.size, picture, encode, decode: performance.now() - begin };
}
